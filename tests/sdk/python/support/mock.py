"""The control side of the scripted model. Every test has a model id of its own, so tests can run side by side."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx2

# No wait here is meant to last; a passing test is done in a fraction of it.
DEADLINE = 20.0


class Mock:
    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.http = httpx2.Client(base_url=self.url, timeout=DEADLINE + 5)
        self.model = f"mock-{uuid.uuid4().hex}"

    def gate(self, name: str = "gate") -> str:
        """A gate name that no other test uses."""
        return f"{name}-{self.model}"

    def rules(self, *rules: dict[str, Any]) -> None:
        """Adds rules for this test's model id."""
        scoped = [{**rule, "when": {"model": self.model, **rule.get("when", {})}} for rule in rules]
        self.http.post("/_mock/rules", json=scoped).raise_for_status()

    def answer(self, *steps: dict[str, Any] | str, **when: Any) -> None:
        """One rule, from its steps."""
        self.rules({"when": when, "answer": [{"text": step} if isinstance(step, str) else step for step in steps]})

    def requests(self) -> list[dict[str, Any]]:
        return self._entries(self.http.get("/_mock/requests", params={"model": self.model}))

    def wait_requests(self, count: int, *, ended: bool = False) -> list[dict[str, Any]]:
        """Returns once this model has been asked `count` times."""
        params: dict[str, Any] = {"model": self.model, "count": count, "timeout_ms": int(DEADLINE * 1000)}
        if ended:
            params["ended"] = "true"
        return self._entries(self.http.get("/_mock/requests/wait", params=params))

    def wait_blocked(self, gate: str) -> None:
        """Returns once a response stands at the gate."""
        params = {"timeout_ms": int(DEADLINE * 1000)}
        self.http.get(f"/_mock/gates/{gate}/wait", params=params).raise_for_status()

    def release(self, gate: str, times: int | None = None) -> None:
        params = {} if times is None else {"times": times}
        self.http.post(f"/_mock/gates/{gate}/release", params=params).raise_for_status()

    @staticmethod
    def _entries(response: httpx2.Response) -> list[dict[str, Any]]:
        response.raise_for_status()
        found = response.json()
        return found["data"] if isinstance(found, dict) else found

    @staticmethod
    def body(entry: dict[str, Any]) -> dict[str, Any]:
        return json.loads(entry["body"])
