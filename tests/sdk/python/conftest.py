"""Fixtures. Whatever a test does, every session it makes is recorded from its first event and judged at the end."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any, Iterator

import anthropic
import httpx2
import pytest

from support import order, process, registry
from support.mcp_server import McpServer
from support.mock import Mock
from support.tail import NO_REUSE, Tail, open_raw

BETA = "managed-agents-2026-04-01"
HEADERS = {"anthropic-beta": BETA, "anthropic-version": "2026-10-21"}
TOOLSET = {"type": "agent_toolset_20260401"}

CREATE_SESSION = re.compile(r"/v1/sessions/?$")


@pytest.fixture(scope="session")
def server() -> Iterator[process.Server]:
    found = process.from_environment()
    if found is not None:
        yield found
        return
    started = process.start()
    yield started
    started.stop()


class Watch:
    """Records every session from the moment it is created, and judges all of them when the test is over."""

    def __init__(self, server: process.Server) -> None:
        self.http = httpx2.Client(
            base_url=server.url, headers={**HEADERS, "authorization": f"Bearer {server.key}"}, timeout=30, limits=NO_REUSE
        )
        self.tails: dict[str, Tail] = {}
        # Sessions whose stream is judged by the test itself, with the reason.
        self.excused: dict[str, str] = {}

    def response(self, response: httpx2.Response) -> None:
        if response.request.method == "POST" and response.status_code == 200:
            if CREATE_SESSION.search(response.request.url.path):
                response.read()
                self.follow(response.json()["id"])

    async def response_async(self, response: httpx2.Response) -> None:
        if response.request.method == "POST" and response.status_code == 200:
            if CREATE_SESSION.search(response.request.url.path):
                await response.aread()
                self.follow(response.json()["id"])

    def follow(self, session: str) -> None:
        if session not in self.tails:
            self.tails[session] = open_raw(self.http, f"/v1/sessions/{session}/events/stream", name=f"watch {session}")

    def list(self, session: str, **params: Any) -> list[order.Event]:
        events: list[order.Event] = []
        page = None
        while True:
            query = {**params, **({"page": page} if page else {})}
            response = self.http.get(f"/v1/sessions/{session}/events", params=query)
            response.raise_for_status()
            body = response.json()
            events += body["data"]
            page = body["next_page"]
            if page is None:
                return events

    def settle(self, session: str) -> None:
        """Brings a session to its end, so that its stream ends too."""
        deadline = time.monotonic() + 30
        interrupted = False
        while True:
            response = self.http.get(f"/v1/sessions/{session}")
            if response.status_code == 404:
                return
            state = response.json()
            if state["archived_at"] is not None or state["status"] == "terminated":
                return
            if state["status"] == "idle":
                if self.http.post(f"/v1/sessions/{session}/archive").status_code == 200:
                    return
            elif not interrupted:
                interrupted = True
                interrupt = {"events": [{"type": "user.interrupt"}]}
                self.http.post(f"/v1/sessions/{session}/events", json=interrupt)
            assert time.monotonic() < deadline, f"{session} stays {state['status']} after an interrupt"
            time.sleep(0.02)

    def judge(self) -> list[str]:
        found = []
        for session, tail in self.tails.items():
            try:
                self.settle(session)
                tail.wait_end()
                found += [f"{session}: {text}" for text in self.judge_one(session, tail)]
            except AssertionError as error:
                found.append(f"{session}: {error}")
            finally:
                tail.close()
        self.http.close()
        return found

    def judge_one(self, session: str, tail: Tail) -> list[str]:
        found = order.check_stream(tail.records)
        if tail.error is not None:
            found.append(f"the stream failed: {tail.error!r}")
        last = -1
        for record in tail.records:
            if record.sse_event != record["type"]:
                found.append(f"the event line says {record.sse_event}, the data {record['type']}")
            if record["type"] in order.STREAM_ONLY:
                # No part of the log: nothing to resume from.
                continue
            identity, _, sequence = (record.sse_id or "").rpartition(".")
            if identity != record["id"] or not sequence.isdigit():
                found.append(f"the id line says {record.sse_id!r} for {record['id']}")
            elif int(sequence) <= last:
                found.append(f"the position {sequence} comes after {last}")
            else:
                last = int(sequence)
        if self.http.get(f"/v1/sessions/{session}").status_code == 404:
            found += order.check(order.dedupe(tail.records), complete=False)
            return found
        listed = self.list(session)
        found += order.check(listed)
        if session not in self.excused:
            implied = order.dedupe(tail.records)
            if implied != listed:
                found.append(difference(listed, implied))
        return found


def difference(listed: list[order.Event], implied: list[order.Event]) -> str:
    """Where a list and a stream part, with what surrounds the place."""
    same = zip(listed, implied)
    at = next((index for index, (one, other) in enumerate(same) if one != other), min(len(listed), len(implied)))
    sides = (("list", listed), ("stream", implied))
    return f"list and stream differ at {at}:" + "".join(
        f"\n  {name} ({len(events)} events): "
        + ", ".join(f"{order.short(each)} {each['id'][-6:]} {each['processed_at']}" for each in events[max(0, at - 4) : at + 6])
        for name, events in sides
    )


@pytest.fixture
def watch(server: process.Server) -> Iterator[Watch]:
    watch = Watch(server)
    yield watch
    violations = watch.judge()
    assert not violations, "\n".join(violations)


@pytest.fixture
def mock(server: process.Server) -> Mock:
    return Mock(server.mock_url)


def make_client(server: process.Server, watch: Watch, **options: Any) -> anthropic.Anthropic:
    options = {"api_key": server.key, "max_retries": 0, "timeout": 60, **options}
    return anthropic.Anthropic(
        base_url=server.url,
        http_client=anthropic.DefaultHttpxClient(limits=NO_REUSE, event_hooks={"response": [watch.response]}),
        _strict_response_validation=True,
        **options,
    )


@pytest.fixture
def client(server: process.Server, watch: Watch, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[anthropic.Anthropic]:
    """The official client as it comes, in strict mode, without retries so that every refusal is seen as it is."""
    with make_client(server, watch) as client:
        called: set[str] = set()
        wanted = [path for path in getattr(request.function, "covers", ()) if "tool_runner" not in path]
        for path in wanted:
            owner, _, name = path.rpartition(".")
            spy(monkeypatch, type(registry.resolve(client, owner)), name, path, called)
        yield client
        missing = set(wanted) - called
        assert not missing, f"this test says that it covers {sorted(missing)}, and never calls it"


def spy(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, path: str, called: set[str]) -> None:
    original = getattr(owner, name)

    def recorded(self: Any, *arguments: Any, **options: Any) -> Any:
        called.add(path)
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, recorded)


@pytest.fixture
def raw(server: process.Server, watch: Watch) -> Iterator[httpx2.Client]:
    """Plain HTTP with the right headers, for what the SDK would never send."""
    with httpx2.Client(
        base_url=server.url,
        headers={**HEADERS, "authorization": f"Bearer {server.key}"},
        timeout=60,
        limits=NO_REUSE,
        event_hooks={"response": [watch.response]},
    ) as http:
        yield http


@pytest.fixture
def other(server: process.Server) -> Iterator[httpx2.Client]:
    """The same with a key of another workspace."""
    with httpx2.Client(
        base_url=server.url, headers={**HEADERS, "authorization": f"Bearer {server.other_key}"}, timeout=60
    ) as http:
        yield http


@pytest.fixture(scope="session")
def environment_id(server: process.Server) -> str:
    """A plain cloud environment, shared: nothing changes it."""
    response = httpx2.post(
        f"{server.url}/v1/environments",
        headers={**HEADERS, "authorization": f"Bearer {server.key}"},
        json={"name": f"shared-{uuid.uuid4().hex}"},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    return response.json()["id"]


class Maker:
    """The usual objects in one call each."""

    def __init__(self, client: anthropic.Anthropic, mock: Mock, environment_id: str) -> None:
        self.client, self.mock, self.environment_id = client, mock, environment_id

    def agent(self, **fields: Any) -> Any:
        fields = {"name": f"agent {uuid.uuid4().hex[:8]}", "model": self.mock.model, **fields}
        return self.client.beta.agents.create(**fields)

    def session(self, agent: Any = None, **fields: Any) -> Any:
        if agent is None:
            agent = self.agent(tools=fields.pop("tools", []))
        return self.client.beta.sessions.create(
            agent=getattr(agent, "id", agent), environment_id=self.environment_id, **fields
        )

    def say(self, session: Any, *texts: str) -> Any:
        events: list[Any] = [{"type": "user.message", "content": [{"type": "text", "text": text}]} for text in texts]
        return self.client.beta.sessions.events.send(getattr(session, "id", session), events=events)

    def send(self, session: Any, *events: Any) -> Any:
        return self.client.beta.sessions.events.send(getattr(session, "id", session), events=list(events))


@pytest.fixture
def make(client: anthropic.Anthropic, mock: Mock, environment_id: str) -> Maker:
    return Maker(client, mock, environment_id)


@pytest.fixture
def mcp_server() -> type[McpServer]:
    """Starts real MCP servers: see `support.mcp_server`."""
    return McpServer


def toolset(policy: str = "always_allow", **configs: str) -> dict[str, Any]:
    """The built-in tools with a policy, and exceptions by tool name."""
    return {
        "type": "agent_toolset_20260401",
        "default_config": {"enabled": True, "permission_policy": {"type": policy}},
        "configs": [{"name": name, "permission_policy": {"type": each}} for name, each in configs.items()],
    }


def custom(name: str = "lookup") -> dict[str, Any]:
    return {
        "type": "custom",
        "name": name,
        "description": "Looks something up.",
        "input_schema": {"type": "object", "properties": {"key": {"type": "string"}}},
    }
