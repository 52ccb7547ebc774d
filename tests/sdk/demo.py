"""One session, driven by the official Python SDK: `./dev demo` runs this against a server of its own.

SELFSAME_URL and SELFSAME_KEY say where the server is. SELFSAME_MOCK_URL is set when the model behind it is the
scripted one, SELFSAME_MODEL names another model.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from typing import Any, Iterator

import anthropic

TASK = "Write a Python program that computes the Fibonacci numbers below 1000, save it in /workspace, and run it."
PATIENCE = 300.0

started = time.monotonic()
colour = sys.stdout.isatty()


def paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if colour else text


def show(label: str, text: str = "", code: str = "0") -> None:
    """One event: the time since the start, what it is, and its text indented below or beside."""
    head = f"{paint('2', f'{time.monotonic() - started:7.3f}s')}  {paint(code, f'{label:<14}')}"
    lines = text.rstrip().splitlines()
    if len(lines) <= 1:
        print(head, "".join(lines), flush=True)
    else:
        print(head, flush=True)
        print(textwrap.indent("\n".join(lines), " " * 12), flush=True)


def texts(content: Any) -> str:
    return "\n".join(block.text for block in content or [] if block.type == "text")


def follow(events: Iterator[Any]) -> str | None:
    """Prints events up to the next idle. Returns the last path that the agent wrote to."""
    written: str | None = None
    for event in events:
        match event.type:
            case "agent.message":
                show("agent", texts(event.content), "1")
            case "agent.thinking":
                show("thinking", code="2")
            case "agent.tool_use":
                # A tool call is shown as what a person would want to read of it.
                value = event.input
                detail = value.get("command") or value.get("file_path") or str(value)
                if event.name == "write":
                    written = value.get("file_path")
                show(event.name, detail, "36")
            case "agent.tool_result":
                show("failed" if event.is_error else "result", texts(event.content), "31" if event.is_error else "32")
            case "session.error":
                show("error", event.error.message, "31")
            case "session.status_running":
                show("running", code="2")
            case "session.usage":
                pass
            case "session.status_idle":
                show("idle", event.stop_reason.type, "2")
                if event.stop_reason.type != "end_turn":
                    raise SystemExit(f"the turn ended with {event.stop_reason.type}")
                return written
            case "session.status_terminated" | "session.deleted":
                raise SystemExit(f"the session ended: {event.type}")
    raise SystemExit("the stream ended before the agent was done")


def say(client: anthropic.Anthropic, session: str, text: str) -> None:
    show("you", text, "33")
    client.beta.sessions.events.send(
        session, events=[{"type": "user.message", "content": [{"type": "text", "text": text}]}]
    )


def main() -> None:
    # The only difference to the hosted service: where it is, and the key to it.
    client = anthropic.Anthropic(base_url=os.environ["SELFSAME_URL"], api_key=os.environ["SELFSAME_KEY"], timeout=PATIENCE)
    suffix = f"{time.time_ns():x}"
    agent = client.beta.agents.create(
        name="demo",
        model=os.environ.get("SELFSAME_MODEL", "claude-sonnet-4-6"),
        system="You are a careful programmer. Be brief.",
        tools=[{"type": "agent_toolset_20260401"}],
    )
    show("agent", agent.id, "2")
    environment = client.beta.environments.create(name=f"demo-{suffix}")
    show("environment", environment.id, "2")
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, title="Demo")
    show("session", session.id, "2")
    try:
        # Opened before anything is sent, so nothing is missed.
        with client.beta.sessions.events.stream(session.id) as events:
            say(client, session.id, TASK)
            path = follow(events)
            if path is None:
                raise SystemExit("the agent wrote no file")
            # The scripted model understands lines that begin with an exclamation mark.
            scripted = "SELFSAME_MOCK_URL" in os.environ
            say(client, session.id, f"!bash cat {path}" if scripted else f"Run `cat {path}`, so that I see the file.")
            follow(events)
        usage = client.beta.sessions.retrieve(session.id).usage
        if usage is not None:
            show("tokens", f"{usage.input_tokens} in, {usage.output_tokens} out", "2")
    finally:
        # Takes the sandbox with it.
        client.beta.sessions.delete(session.id)
    client.beta.environments.delete(environment.id)
    client.beta.agents.archive(agent.id)


if __name__ == "__main__":
    main()
