"""One session, driven by the official Python SDK: `./dev demo` runs this against a server of its own.

SELFSAME_URL and SELFSAME_KEY say where the server is. SELFSAME_MOCK_URL is set when the model behind it is the
scripted one; SELFSAME_MODEL names another model.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from typing import Any

import anthropic

TASK = (
    "Write a Python program that computes the first 20 Fibonacci numbers, save it in /workspace, and run it. "
    "Write the numbers to a file in /mnt/session/outputs as well."
)
# A real model may think for long before its first word.
PATIENCE = 300.0
GUTTER = " " * 12

started = time.monotonic()
colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120)) - len(GUTTER)


def paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if colour else text


def show(label: str, text: str = "", code: str = "0") -> None:
    """One line for what happened and when, and its text below it."""
    print(f"{paint('2', f'{time.monotonic() - started:8.3f}s')}  {paint(code, label)}", flush=True)
    for line in text.rstrip().splitlines():
        for part in textwrap.wrap(line, width, replace_whitespace=False, drop_whitespace=False) or [""]:
            print(f"{GUTTER}{part}".rstrip(), flush=True)


def note(label: str, text: str = "") -> None:
    """What is of interest only to those who want to know how it works."""
    show(paint("2", f"{label:<12}  {text}".rstrip()))


def texts(content: Any) -> str:
    return "\n".join(block.text for block in content or [] if block.type == "text")


class Typing:
    """The agent's words while they are being generated: shown as they come, and finished by the event itself."""

    def __init__(self) -> None:
        self.event: str | None = None
        self.text = ""
        self.at_margin = False

    def start(self, event: str) -> None:
        show("agent says", code="1")
        self.event, self.text, self.at_margin = event, "", True

    def add(self, event: str, text: str) -> None:
        if event != self.event:
            return
        self.text += text
        for part in text.splitlines(keepends=True):
            print((GUTTER if self.at_margin and part.strip() else "") + part, end="", flush=True)
            self.at_margin = part.endswith("\n")

    def end(self) -> None:
        if self.event is not None and not self.at_margin:
            print(flush=True)
        self.event = None

    def finish(self, event: str, text: str) -> bool:
        """Whether the event has been shown already. The event has the last word: previews may stop early."""
        if event != self.event:
            return False
        self.add(event, text.removeprefix(self.text))
        self.end()
        return True


def follow(events: anthropic.Stream[Any], quiet: bool = False) -> tuple[str | None, str]:
    """Shows events up to the next idle. Returns the last path that the agent wrote to, and its last result."""
    written: str | None = None
    result = ""
    typing = Typing()
    for event in events:
        match event.type:
            case "event_start" if event.event.type == "agent.thinking":
                note("thinking")
            case "event_start" if not quiet:
                typing.start(event.event.id)
            case "event_delta":
                typing.add(event.event_id, event.delta.content.text)
            case "agent.message" if not quiet:
                if not typing.finish(event.id, texts(event.content)):
                    show("agent says", texts(event.content), "1")
            case "agent.tool_use":
                # A call is shown as what a person would want to read of it.
                value = event.input
                detail = value.get("command") or value.get("file_path") or str(value)
                if event.name in ("write", "edit"):
                    written = value.get("file_path")
                show(event.name, f"$ {detail}" if event.name == "bash" else detail, "1;36")
            case "agent.tool_result":
                result = texts(event.content)
                if event.is_error:
                    show("failed", result, "1;31")
                elif not quiet:
                    show("result", result, "1;32")
            case "session.error":
                show("error", f"{event.error.message} ({event.error.retry_status.type})", "1;31")
            case "span.model_request_end":
                # Without its event, a message that was begun is lost to an error: the server asks again.
                typing.end()
            case "session.status_running":
                note("running")
            case "session.status_idle":
                note("idle", event.stop_reason.type)
                if event.stop_reason.type != "end_turn":
                    raise SystemExit(f"the turn ended with {event.stop_reason.type}")
                return written, result
            case "session.status_terminated" | "session.deleted":
                raise SystemExit(f"the session ended: {event.type}")
    raise SystemExit("the stream ended before the agent was done")


def say(client: anthropic.Anthropic, session: str, text: str) -> None:
    show("you say", text, "1;33")
    client.beta.sessions.events.send(
        session, events=[{"type": "user.message", "content": [{"type": "text", "text": text}]}]
    )


def main() -> None:
    # The only difference to the hosted service: where it is, and the key to it.
    client = anthropic.Anthropic(
        base_url=os.environ["SELFSAME_URL"], api_key=os.environ["SELFSAME_KEY"], timeout=PATIENCE
    )
    agent = client.beta.agents.create(
        name="demo",
        model=os.environ.get("SELFSAME_MODEL", "claude-sonnet-4-6"),
        system="You are a careful programmer. Be brief.",
        tools=[{"type": "agent_toolset_20260401"}],
    )
    note("agent", agent.id)
    environment = client.beta.environments.create(name=f"demo-{time.time_ns():x}")
    note("environment", environment.id)
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, title="Demo")
    note("session", session.id)
    try:
        # Opened before anything is sent, so nothing is missed.
        deltas = ["agent.message", "agent.thinking"]
        with client.beta.sessions.events.stream(session.id, event_deltas=deltas) as events:
            say(client, session.id, TASK)
            path, _ = follow(events)
            if path is None:
                raise SystemExit("the agent wrote no file")
            # The same sandbox, a turn later: its files are still there. The scripted model takes orders in
            # lines that begin with an exclamation mark.
            scripted = "SELFSAME_MOCK_URL" in os.environ
            say(client, session.id, f"!bash cat {path}" if scripted else f"Run exactly `cat {path}`, and say only: done.")
            _, content = follow(events, quiet=True)
            if not content.strip():
                raise SystemExit(f"{path} is empty")
            show(f"{path}, as it is in the sandbox", content, "1;32")
        session = client.beta.sessions.retrieve(session.id)
        # Pages of its own accord; one entry for each event of the log.
        count = sum(1 for _ in client.beta.sessions.events.list(session.id, limit=20))
        usage = session.usage
        read = (usage.input_tokens or 0) + (usage.cache_read_input_tokens or 0)
        if usage.cache_creation is not None:
            read += usage.cache_creation.ephemeral_5m_input_tokens or 0
            read += usage.cache_creation.ephemeral_1h_input_tokens or 0
        note("done", f"{count} events in the log, {read} tokens in and {usage.output_tokens} out")
    finally:
        # Takes the sandbox with it.
        client.beta.sessions.delete(session.id)
        client.beta.environments.delete(environment.id)
        client.beta.agents.archive(agent.id)


if __name__ == "__main__":
    try:
        main()
    except anthropic.APIError as error:
        raise SystemExit(f"the demo failed: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
