"""What tests of outcomes share: definitions, scripted graders, and a look into the requests of graders."""

from __future__ import annotations

import json
import re
from typing import Any

VERDICT = "submit_verdict"
OUTPUTS = "/mnt/session/outputs"


def define(description: str = "Write the report.", rubric: Any = "- Has a title", **fields: Any) -> dict[str, Any]:
    if isinstance(rubric, str):
        rubric = {"type": "text", "content": rubric}
    return {"type": "user.define_outcome", "description": description, "rubric": rubric, **fields}


def verdict(result: str, summary: str = "The summary.") -> dict[str, Any]:
    """The input of a grader's tool."""
    title = {"criterion": "Has a title", "finding": "report.md has none", "met": False, "gap": "No title", "change": "Add one"}
    if result == "satisfied":
        title = {"criterion": "Has a title", "finding": "report.md has one", "met": True}
    return {"criteria": [] if result == "failed" else [title], "result": result, "summary": summary}


def gives(given: Any) -> dict[str, Any]:
    """A step of the scripted model."""
    return {"tool": {"name": VERDICT, "input": verdict(given) if isinstance(given, str) else given}}


def grader(mock: Any, *answers: Any, look: list[dict[str, Any]] | None = None) -> None:
    """Scripts graders: one answer, a result or steps, for each time that a verdict is asked for. To be called before
    the agent is scripted: a grader's first request is the first of a conversation, too."""
    for answer in answers:
        steps = answer if isinstance(answer, list) else [gives(answer)]
        mock.rules({"name": "verdict", "when": {"forced": VERDICT}, "times": 1, "answer": steps})
    if look:
        mock.rules({"name": "look", "when": {"tool": VERDICT, "turn": 0}, "answer": look})
    mock.rules({"name": "seen", "when": {"tool": VERDICT}, "answer": "I have seen enough."})


def is_grader(body: dict[str, Any]) -> bool:
    return any(tool["name"] == VERDICT for tool in body.get("tools", []))


def gradings(mock: Any) -> list[list[dict[str, Any]]]:
    """The bodies of graders' requests, by grading."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in mock.requests():
        body = mock.body(entry)
        if is_grader(body):
            found.setdefault(mark(body), []).append(body)
    return list(found.values())


def agent_requests(mock: Any) -> list[dict[str, Any]]:
    bodies = [mock.body(entry) for entry in mock.requests()]
    return [body for body in bodies if not is_grader(body)]


def mark(body: dict[str, Any]) -> str:
    found = re.fullmatch(r"The mark of this evaluation is ([0-9a-f]{32})\.", body["messages"][0]["content"][0]["text"])
    assert found, body["messages"][0]
    return found[1]


def texts(body: dict[str, Any]) -> list[str]:
    """Every text that a request shows to its model as somebody else's words, in order."""
    found = []
    for message in body["messages"]:
        if message["role"] == "user":
            for block in message["content"]:
                parts = block["content"] if block["type"] == "tool_result" else [block]
                found += [part["text"] for part in parts if part["type"] == "text"]
    return found


def fenced(body: dict[str, Any]) -> tuple[dict[str, list[str]], str]:
    """A grader's data blocks by kind, and everything that stands outside of them."""
    text, sign = "\n".join(texts(body)), mark(body)
    pattern = re.compile(rf"<(\w+)-{sign}(?: name=[^\n]*)?>\n(.*?)\n?</\1-{sign}>", re.DOTALL)
    blocks: dict[str, list[str]] = {}
    for kind, content in pattern.findall(text):
        blocks.setdefault(kind, []).append(content)
    return blocks, pattern.sub("", text)


def last_user_text(body: dict[str, Any]) -> str:
    last = body["messages"][-1]
    assert last["role"] == "user"
    return "\n".join(block.get("text", "") for block in last["content"])


def dumps(bodies: list[dict[str, Any]]) -> str:
    return json.dumps(bodies)
