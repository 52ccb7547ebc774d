"""Webhooks as a receiver sees them: written with the official client, which verifies every one."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Iterator

import anthropic
import httpx2
import pytest
import standardwebhooks
from anthropic.types.beta.beta_webhook_event_data import BetaWebhookEventData
from pydantic import TypeAdapter

from conftest import HEADERS
from support import process
from support.registry import covers

DEADLINE = 60.0
BETA = "webhooks-2026-10-07"
ORGANIZATION_EVENTS: list[Any] = ["external_key.failed", "user_profile.program_status_updated"]


class Receiver:
    """Takes whatever comes to its path and keeps it as it came."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, str]]] = []
        self.changed = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                payload = self.rfile.read(int(self.headers["content-length"])).decode()
                with outer.changed:
                    outer.received.append((payload, {name.lower(): value for name, value in self.headers.items()}))
                    outer.changed.notify_all()
                self.send_response(204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + DEADLINE
        with self.changed:
            while True:
                events = [json.loads(payload) for payload, _ in self.received]
                if enough(events):
                    return events
                left = deadline - time.monotonic()
                assert left > 0, f"never enough: {[event['data']['type'] for event in events]}"
                self.changed.wait(left)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def endpoint(raw: httpx2.Client, receiver: Receiver) -> Iterator[Callable[..., dict[str, Any]]]:
    """Makes endpoints of the receiver; they go with the test, because a workspace has only so many."""
    made: list[str] = []

    def create(events: list[str]) -> dict[str, Any]:
        response = raw.post("/v1/webhook_endpoints", json={"url": receiver.url, "enabled_events": events})
        assert response.status_code == 200, response.text
        made.append(response.json()["id"])
        return response.json()

    yield create
    for each in made:
        assert raw.delete(f"/v1/webhook_endpoints/{each}").status_code == 200


def known_events(raw: httpx2.Client) -> list[str]:
    """Those that an endpoint of a workspace can have, as the server says them."""
    response = raw.post("/v1/webhook_endpoints", json={"url": "https://example.com", "enabled_events": ["external_key.failed"]})
    assert response.status_code == 400, response.text
    found = re.findall(r"`([a-z_]+\.[a-z_]+)`", response.json()["error"]["message"])
    return [name for name in found if name != "external_key.failed"]


@covers("beta.webhooks.unwrap", "beta.webhooks.parse_unverified")
def test_every_event_type_is_verified(client, raw, receiver, endpoint) -> None:
    """All names that can be subscribed to, by test events; what really happens is below."""
    events = known_events(raw)
    assert len(events) == 44 and "session.status_idled" in events
    made = endpoint(events)
    for name in events:
        response = raw.post(f"/v1/webhook_endpoints/{made['id']}/test_event", json={"event_type": name})
        assert response.status_code == 200, response.text
    receiver.wait(lambda seen: len(seen) >= len(events))
    strict = TypeAdapter(BetaWebhookEventData)
    seen = set()
    for payload, headers in receiver.received:
        event = client.beta.webhooks.unwrap(payload, headers=headers, key=made["signing_secret"])
        assert event.type == "event" and event.id == headers["webhook-id"] and event.id.startswith("whe_")
        # The client takes any shape when it unwraps; its types must hold as well.
        data = strict.validate_python(json.loads(payload)["data"])
        assert data.workspace_id.startswith("wrkspc_") and data.organization_id.startswith("org_")
        assert headers["content-type"] == "application/json"
        assert client.beta.webhooks.parse_unverified(payload) == event
        seen.add(event.data.type)
    assert seen == set(events)


def test_what_is_not_ours_is_refused(client, raw, receiver, endpoint) -> None:
    made = endpoint(["agent.created"])
    raw.post(f"/v1/webhook_endpoints/{made['id']}/test_event")
    receiver.wait(lambda seen: len(seen) == 1)
    payload, headers = receiver.received[0]
    key = made["signing_secret"]
    client.beta.webhooks.unwrap(payload, headers=headers, key=key)
    tampered = payload.replace("agent.created", "agent.updated")
    old = {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 301)}
    other = {**headers, "webhook-id": "whe_01"}
    wrong = "whsec_" + "A" * 43 + "="
    for body, head, secret in ((tampered, headers, key), (payload, old, key), (payload, other, key), (payload, headers, wrong)):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            client.beta.webhooks.unwrap(body, headers=head, key=secret)


def test_both_secrets_verify_while_they_overlap(client, raw, receiver, endpoint) -> None:
    made = endpoint(["agent.created"])
    path = f"/v1/webhook_endpoints/{made['id']}"
    second = raw.post(f"{path}/regenerate_signing_secret").json()["signing_secret"]
    raw.post(f"{path}/test_event")
    receiver.wait(lambda seen: len(seen) == 1)
    payload, headers = receiver.received[0]
    for key in (made["signing_secret"], second):
        client.beta.webhooks.unwrap(payload, headers=headers, key=key)
    third = raw.post(f"{path}/regenerate_signing_secret", json={"overlap_seconds": 0}).json()["signing_secret"]
    raw.post(f"{path}/test_event")
    receiver.wait(lambda seen: len(seen) == 2)
    payload, headers = receiver.received[1]
    client.beta.webhooks.unwrap(payload, headers=headers, key=third)
    for key in (made["signing_secret"], second):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            client.beta.webhooks.unwrap(payload, headers=headers, key=key)


def test_a_session_tells_of_its_life(client, raw, make, mock, receiver, endpoint) -> None:
    """Everything that happens to a session, verified, in strict types, and about the right session."""
    names = [name for name in known_events(raw) if name.startswith(("session.", "agent.", "environment."))]
    made = endpoint(names)
    agent = make.agent()
    session = make.session(agent)
    mock.answer("hello")
    make.say(session, "hi")
    mine = lambda seen: [event["data"]["type"] for event in seen if event["data"]["id"] == session.id]
    receiver.wait(lambda seen: "session.status_idled" in mine(seen))
    client.beta.sessions.update(session.id, title="told")
    client.beta.sessions.archive(session.id)
    client.beta.sessions.delete(session.id)
    wanted = {
        "session.created",
        "session.status_run_started",
        "session.running",
        "session.status_idled",
        "session.idled",
        "session.updated",
        "session.status_terminated",
        "session.archived",
        "session.deleted",
    }
    receiver.wait(lambda seen: set(mine(seen)) == wanted)
    for payload, headers in receiver.received:
        client.beta.webhooks.unwrap(payload, headers=headers, key=made["signing_secret"])
    # A session that waits for its client says so; threads of a session alone are nobody's business.
    seen = receiver.wait(lambda seen: len(mine(seen)) == len(wanted))
    assert not [event for event in seen if event["data"]["type"].startswith("session.thread_")]


def test_another_workspace_hears_nothing(raw, other, make, receiver, endpoint) -> None:
    foreign = other.post("/v1/webhook_endpoints", json={"url": receiver.url + "/foreign", "enabled_events": ["agent.created"]}).json()
    made = endpoint(["agent.created"])
    agent = make.agent()
    receiver.wait(lambda seen: agent.id in [event["data"]["id"] for event in seen])
    assert other.get(f"/v1/webhook_endpoints/{foreign['id']}/deliveries").json()["data"] == []
    assert other.get(f"/v1/webhook_endpoints/{made['id']}").status_code == 404
    assert raw.get(f"/v1/webhook_endpoints/{foreign['id']}").status_code == 404
    assert other.delete(f"/v1/webhook_endpoints/{foreign['id']}").status_code == 200


@covers(
    "beta.organization.webhooks.create",
    "beta.organization.webhooks.retrieve",
    "beta.organization.webhooks.update",
    "beta.organization.webhooks.list",
    "beta.organization.webhooks.delete",
    "beta.organization.webhooks.regenerate_signing_secret",
)
def test_the_organizations_endpoints(client, server) -> None:
    webhooks = client.with_options(api_key=server.admin_key).beta.organization.webhooks
    url = "https://hooks.example.com/organization"
    made = webhooks.create(url=url, enabled_events=ORGANIZATION_EVENTS, name="mine")
    assert made.signing_secret.startswith("whsec_") and made.id.startswith("whep_")
    assert (made.state, made.disabled_reason, made.description) == ("enabled", "", "")
    other = webhooks.create(url=url, enabled_events=ORGANIZATION_EVENTS[:1])
    found = webhooks.retrieve(made.id)
    assert found.enabled_events == ORGANIZATION_EVENTS and found.url == url
    off = webhooks.update(made.id, state="disabled", description="for now", enabled_events=[])
    assert (off.state, off.description, off.enabled_events) == ("disabled", "for now", ORGANIZATION_EVENTS)
    ids = [each.id for each in webhooks.list(limit=1)]
    assert ids.index(other.id) < ids.index(made.id)
    ascending = [each.id for each in webhooks.list(limit=1, order="asc")]
    assert ascending == ids[::-1]
    before = webhooks.list(before_id=made.id, limit=1)
    assert [each.id for each in before.data] == ids[:1]
    assert webhooks.regenerate_signing_secret(made.id).signing_secret != made.signing_secret
    for each in (made, other):
        assert webhooks.delete(each.id).type == "webhook_endpoint_deleted"
    with pytest.raises(anthropic.NotFoundError):
        webhooks.retrieve(made.id)
    with pytest.raises(anthropic.PermissionDeniedError):
        client.beta.organization.webhooks.list()


def example() -> str:
    """The receiver of the documentation, as it stands there."""
    text = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(found) == 1
    return found[0]


def test_the_receiver_of_the_documentation(server, raw, make, mock, tmp_path, monkeypatch) -> None:
    program = tmp_path / "receiver.py"
    program.write_text(example())
    database, port = tmp_path / "receiver.db", process.free_port()
    url = f"http://127.0.0.1:{port}/"
    made = raw.post("/v1/webhook_endpoints", json={"url": url, "enabled_events": ["session.status_idled"]}).json()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_API_KEY": server.key,
        "ANTHROPIC_WEBHOOK_SIGNING_KEY": made["signing_secret"],
        "RECEIVER_DATABASE": str(database),
        "PORT": str(port),
    }
    log = open(tmp_path / "receiver.log", "wb")
    running = subprocess.Popen([sys.executable, str(program)], env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        http = httpx2.Client(timeout=10)

        def listening() -> bool:
            try:
                # Nobody without a signature is believed.
                return http.post(url, content="{}").status_code == 401
            except httpx2.TransportError:
                return False

        said = lambda: (tmp_path / "receiver.log").read_text()
        until(listening, said)
        session = make.session()
        mock.answer("hello")
        make.say(session, "hi")

        def stored() -> bool:
            with sqlite3.connect(database) as db:
                return db.execute("SELECT status FROM sessions WHERE id = ?", (session.id,)).fetchall() == [("idle",)]

        until(stored, said)
        # Once more, as after a crash: the same id, and nothing new.
        path = f"/v1/webhook_endpoints/{made['id']}"
        mine = [each for each in raw.get(f"{path}/deliveries").json()["data"] if each["event"]["data"]["id"] == session.id]
        assert len(mine) == 1
        assert raw.post(f"{path}/deliveries/{mine[0]['id']}/redeliver").status_code == 200

        def delivered_twice() -> bool:
            found = raw.get(f"{path}/deliveries/{mine[0]['id']}").json()
            return [each["status_code"] for each in found["attempts"]] == [204, 204]

        until(delivered_twice, said)
        with sqlite3.connect(database) as db:
            rows = db.execute("SELECT id, done FROM inbox WHERE resource = ?", (session.id,)).fetchall()
        assert rows == [(mine[0]["id"], True)]
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
        log.close()
        raw.delete(f"/v1/webhook_endpoints/{made['id']}")


def until(condition: Callable[[], bool], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)
