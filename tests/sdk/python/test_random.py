"""Random clients, a random model: whatever they do, no 5xx, a legal order, and a list that equals the stream.

Every session is judged by the `watch` fixture like all others. A failing seed is printed and can be run again with
`SELFSAME_SEED`. `SELFSAME_SEEDS` is how many are tried, `SELFSAME_ROUNDS` the number of actions of each client.
"""

from __future__ import annotations

import os
import random
import threading
import time

import httpx2
import pytest

from conftest import HEADERS, custom, toolset

ROUNDS = int(os.environ.get("SELFSAME_ROUNDS", "25"))
SEEDS = [int(os.environ["SELFSAME_SEED"])] if "SELFSAME_SEED" in os.environ else range(1, int(os.environ.get("SELFSAME_SEEDS", "6")) + 1)


def answers(dice: random.Random, gate: str) -> list[dict]:
    """A model that talks, thinks, calls, fails, breaks off and waits."""

    def tool() -> dict:
        return dice.choice(
            [
                {"tool": {"name": "lookup", "input": {"key": "k"}}},
                {"tool": {"name": "bash", "input": {"command": "echo hi"}}},
                {"tool": {"name": "bash", "input": {"command": "sleep 0.1; false"}}},
                {"tool": {"name": "glob", "input": {"pattern": "*"}}},
                {"tool": {"name": "write", "input": {"file_path": "a.txt", "content": "x"}}},
                {"tool": {"name": "nothing", "input": {}}},
                {"tool": {"name": "bash", "raw": '{"command": '}},
            ]
        )

    def answer() -> list[dict]:
        kind = dice.randrange(12)
        if kind == 0:
            return [{"error": {"status": dice.choice([429, 500, 529]), "retry_after_ms": 1}}]
        if kind == 1:
            return [{"text": ["some", "thing"]}, {"cut": dice.choice(["abort", "end"])}]
        if kind == 2:
            return [{"text": ["wait "]}, {"gate": gate}, {"text": ["over"]}]
        if kind == 3:
            return [{"refusal": {"category": None, "explanation": None}}]
        if kind == 4:
            return [{"text": "cut short"}, {"stop": "max_tokens"}]
        if kind == 5:
            return [{"error": {"status": 400, "type": "invalid_request_error", "message": "no"}}]
        steps: list[dict] = [{"thinking": "hm"}] if dice.random() < 0.3 else []
        if dice.random() < 0.7:
            steps.append({"text": ["a ", "b ", "c"]})
        steps += [tool() for _ in range(dice.randrange(4))]
        return steps or [{"text": "ok"}]

    return [{"times": 1, "answer": answer()} for _ in range(6 * ROUNDS)] + [{"answer": "enough"}]


class Person:
    """One client that does what the dice say, and keeps what it was told."""

    def __init__(self, server, session: str, seed: int, gate, release) -> None:
        self.dice = random.Random(seed)
        self.http = httpx2.Client(
            base_url=server.url, headers={**HEADERS, "authorization": f"Bearer {server.key}"}, timeout=30
        )
        self.session, self.gate, self.release = session, gate, release
        self.problems: list[str] = []

    def pending(self) -> list[dict]:
        types = ["agent.tool_use", "agent.custom_tool_use", "session.status_idle"]
        events = self.http.get(f"/v1/sessions/{self.session}/events", params={"types[]": types}).json()["data"]
        idle = [event for event in events if event["type"] == "session.status_idle"]
        wanted = idle[-1]["stop_reason"].get("event_ids", []) if idle else []
        # Calls that are not asked for yet may be answered as well.
        wanted += [event["id"] for event in events[-3:] if event["type"] != "session.status_idle"]
        return [event for event in events if event["id"] in wanted and event["type"] != "session.status_idle"]

    def action(self) -> None:
        path = f"/v1/sessions/{self.session}"
        dice = self.dice.randrange(10)
        if dice < 3:
            message = {"type": "user.message", "content": [{"type": "text", "text": f"go {self.dice.random()}"}]}
            events = [message] * self.dice.randrange(1, 3)
            if self.dice.random() < 0.2:
                events.insert(0, {"type": "user.interrupt"})
            response = self.http.post(f"{path}/events", json={"events": events})
        elif dice < 4:
            response = self.http.post(f"{path}/events", json={"events": [{"type": "user.interrupt"}]})
        elif dice < 8:
            calls = self.pending()
            self.dice.shuffle(calls)
            answers = [self.answer(call) for call in calls[: self.dice.randrange(1, 3)]]
            if not answers:
                return
            response = self.http.post(f"{path}/events", json={"events": answers})
        elif dice < 9:
            response = self.http.post(path, json={"title": f"title {self.dice.random()}"})
        else:
            self.release(self.gate)
            return
        if response.status_code not in (200, 400):
            self.problems.append(f"{response.request.method} {response.request.url}: {response.status_code} {response.text}")

    def answer(self, call: dict) -> dict:
        if call["type"] == "agent.custom_tool_use":
            return {"type": "user.custom_tool_result", "custom_tool_use_id": call["id"]}
        result = self.dice.choice(["allow", "deny"])
        return {"type": "user.tool_confirmation", "tool_use_id": call["id"], "result": result}

    def run(self) -> None:
        try:
            for _ in range(ROUNDS):
                self.action()
                # Let the session get somewhere in between: a turn of the scripted model takes milliseconds.
                time.sleep(self.dice.random() * 0.05)
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.problems.append(repr(error))
        finally:
            self.http.close()


@pytest.mark.docker
@pytest.mark.parametrize("seed", SEEDS)
def test_anything_goes(server, make, mock, seed) -> None:
    dice = random.Random(seed)
    gate = mock.gate()
    mock.rules(*answers(dice, gate))
    policy = dice.choice(["always_allow", "always_ask"])
    session = make.session(tools=[toolset(policy, glob="always_ask"), custom()])
    people = [Person(server, session.id, seed * 100 + number, gate, lambda gate: mock.release(gate, 1)) for number in range(3)]
    threads = [threading.Thread(target=person.run) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    mock.release(gate)
    problems = [problem for person in people for problem in person.problems]
    assert not problems, f"seed {seed}:\n" + "\n".join(problems)
