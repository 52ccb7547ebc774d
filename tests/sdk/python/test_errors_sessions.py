"""Every refusal of the sessions' tables: creation, lists, updates, states."""

from __future__ import annotations

import json
import uuid

import pytest

from conftest import custom
from support.cases import Case, fill, refused, send

LATER = (400, 501)
ONES = "1" * 22
MESSAGE = {"type": "user.message", "content": [{"type": "text", "text": "hi"}]}


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def names(raw, make, mock, tag, environment_id) -> dict[str, str]:
    def agent(**fields) -> str:
        return raw.post("/v1/agents", json={"name": "a", "model": mock.model, **fields}).json()["id"]

    archived_environment = raw.post("/v1/environments", json={"name": tag}).json()["id"]
    raw.post(f"/v1/environments/{archived_environment}/archive")
    archived_agent = agent()
    raw.post(f"/v1/agents/{archived_agent}/archive")
    session = make.session(title="before", metadata={"a": "1"})
    archived = make.session()
    raw.post(f"/v1/sessions/{archived.id}/archive")
    thread = raw.get(f"/v1/sessions/{session.id}/threads").json()["data"][0]["id"]
    return {
        "tag": tag,
        "agent": agent(),
        "tooled": agent(tools=[custom()]),
        "archived_agent": archived_agent,
        "environment": environment_id,
        "archived_environment": archived_environment,
        "session": session.id,
        "archived": archived.id,
        "thread": thread,
    }


def override(**fields) -> dict:
    return {"agent": {"type": "agent_with_overrides", "id": "{agent}", **fields}}


def resource(**fields) -> dict:
    return {"resources": [fields]}


# name: fields, fragment, status, code
CREATES: dict[str, tuple[dict, str | tuple[str, ...], int | tuple[int, ...], str | None]] = {
    "agent missing": ({"agent": ...}, "agent", 400, None),
    "agent null": ({"agent": None}, "agent", 400, None),
    "agent number": ({"agent": 1}, "agent", 400, None),
    "agent unknown": ({"agent": f"agent_01{ONES}"}, "agent", 404, None),
    "agent no id": ({"agent": "nonsense"}, "agent", 404, None),
    "agent archived": ({"agent": "{archived_agent}"}, "archived", 400, None),
    "agent form unknown": ({"agent": {"type": "self", "id": "{agent}"}}, "agent", 400, None),
    "agent form without id": ({"agent": {"type": "agent"}}, "id", 400, None),
    "agent form with more": ({"agent": {"type": "agent", "id": "{agent}", "system": "x"}}, "system", 400, None),
    "agent version unknown": ({"agent": {"type": "agent", "id": "{agent}", "version": 9}}, "version", 404, None),
    "agent version 0": ({"agent": {"type": "agent", "id": "{agent}", "version": 0}}, "version", 400, None),
    "agent version text": ({"agent": {"type": "agent", "id": "{agent}", "version": "1"}}, "version", 400, None),
    "environment missing": ({"environment_id": ...}, "environment_id", 400, None),
    "environment null": ({"environment_id": None}, "environment_id", 400, None),
    "environment unknown": ({"environment_id": f"env_01{ONES}"}, "environment", 404, None),
    "environment of another kind": ({"environment_id": "{agent}"}, "environment", 404, None),
    "environment archived": ({"environment_id": "{archived_environment}"}, "environment is archived", 400, "environment_archived"),
    "title long": ({"title": "{tag}" + "t" * 500}, ("title", "500"), 400, None),
    "title number": ({"title": 1}, "title", 400, None),
    "title NUL": ({"title": "a\0b"}, "title", 400, None),
    "unknown field": ({"environment": "x"}, "environment", 400, None),
    "metadata number": ({"metadata": {"a": 1}}, "metadata", 400, None),
    "overridden model null": (override(model=None), "model", 400, "agent_model_required"),
    "overridden model empty": (override(model=""), "model", 400, None),
    "overridden name": (override(name="x"), "name", 400, None),
    "overridden system long": (override(system="s" * 100_001), "system", 400, None),
    "overridden tools bad": (override(tools=[{"type": "nothing"}]), "tools", 400, None),
    "overridden tools twice": (override(tools=[custom(), custom()]), "lookup", 400, None),
    "overridden skills": (override(skills=[{"type": "anthropic", "skill_id": "xlsx"}]), "skill", 400, None),
    "overridden MCP servers": (override(mcp_servers=[{"type": "url", "name": "s", "url": "https://m.example"}]), "", LATER, None),
    "overridden agent unknown": ({"agent": {"type": "agent_with_overrides", "id": f"agent_01{ONES}"}}, "agent", 404, None),
    "resources text": ({"resources": "x"}, "resources", 400, None),
    "resource of an unknown type": (resource(type="floppy"), "resources", 400, None),
    "resource file": (resource(type="file", file_id="file_x"), "resources[0].file_id", 400, None),
    "resource file elsewhere": (resource(type="file", file_id=f"file_01{ONES}", mount_path="../x"), "mount_path", 400, None),
    "resource repository elsewhere": (resource(type="github_repository", url="https://git.example/a/b"), "github.com", 400, None),
    "resource repository with credentials": (resource(type="github_repository", url="https://u:p@github.com/a/b"), "url", 400, None),
    "resource repository by ssh": (resource(type="github_repository", url="git@github.com:a/b.git"), "url", 400, None),
    "resource memory store": (resource(type="memory_store", memory_store_id="memstore_x"), "memory", LATER, None),
    "vault unknown": ({"vault_ids": ["vlt_x"]}, "vault_ids[0]", 400, "vault_not_found"),
    "vaults text": ({"vault_ids": "vlt_x"}, "vault_ids", 400, None),
    "vaults twice": ({"vault_ids": [f"vlt_01{ONES}"] * 2}, ("vault_ids[1]", "twice"), 400, None),
    "vaults, too many": ({"vault_ids": [f"vlt_{number}" for number in range(51)]}, ("vault_ids", "50"), 400, None),
    "budget": ({"budget": {"type": "limit", "max_list_cost": {"amount": "2500", "currency": "USD"}}}, "budget", LATER, None),
    "budget in euros": ({"budget": {"type": "limit", "max_list_cost": {"amount": "1", "currency": "EUR"}}}, "", LATER, None),
    "events text": ({"initial_events": "hi"}, "initial_events", 400, None),
    "events, too many": ({"initial_events": [MESSAGE] * 51}, ("initial_events", "50"), 400, None),
    "events of an unknown type": ({"initial_events": [{"type": "user.shout"}]}, "initial_events", 400, None),
    "events of a type for later": ({"initial_events": [{"type": "user.interrupt"}]}, "initial_events", 400, None),
    "events with a system message": ({"initial_events": [MESSAGE, {"type": "system.message", "content": [{"type": "text", "text": "x"}]}]}, "initial_events", 400, None),
    "events with a bad second": ({"initial_events": [MESSAGE, {"type": "user.message", "content": []}]}, "initial_events", 400, None),
    "events with an outbound one": ({"initial_events": [{"type": "agent.message", "content": []}]}, "initial_events", 400, None),
    "outcome without a rubric": ({"initial_events": [{"type": "user.define_outcome", "description": "d"}]}, "rubric", 400, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CREATES)
def test_create(raw, names, name) -> None:
    fields, fragment, status, code = CREATES[name]
    body = {"agent": "{agent}", "environment_id": "{environment}", "title": "{tag}", "metadata": {"mark": "{tag}"}} | fields
    body = fill({key: value for key, value in body.items() if value is not ...}, names)
    case = Case(name, status=status, fragment=fragment, code=code)
    refused(raw.post("/v1/sessions", json=body), case, names)
    listed = raw.get("/v1/sessions", params={"limit": 1000, "include_archived": "true"}).json()["data"]
    assert not [each for each in listed if names["tag"] in json.dumps([each["title"], each["metadata"]])]


SESSION, ARCHIVED = "/v1/sessions/{session}", "/v1/sessions/{archived}"
CASES = [
    Case("list by version alone", "GET", "/v1/sessions", query="agent_version=1", fragment="agent_id"),
    Case("list by version text", "GET", "/v1/sessions", query="agent_id={agent}&agent_version=x", fragment="agent_version"),
    Case("list by unknown status", "GET", "/v1/sessions", query="statuses[]=asleep", fragment="status"),
    Case("list by one unknown status", "GET", "/v1/sessions", query="statuses[]=idle&statuses[]=asleep", fragment="status"),
    Case("list in an unknown order", "GET", "/v1/sessions", query="order=random", fragment="order"),
    Case("list by name", "GET", "/v1/sessions", query="title=x", fragment="title"),
    Case("list over the limit", "GET", "/v1/sessions", query="limit=1001", fragment="limit"),
    Case("retrieve with a query", "GET", SESSION, query="expand=agent", fragment="expand"),
    Case("update title long", path=SESSION, body={"title": "t" * 501}, fragment="title"),
    Case("update title empty", path=SESSION, body={"title": ""}, fragment="title"),
    Case("update title number", path=SESSION, body={"title": 1}, fragment="title"),
    Case("update metadata", path=SESSION, body={"metadata": {f"k{n}": "v" for n in range(16)}}, fragment="metadata"),
    Case("update metadata number", path=SESSION, body={"metadata": {"a": 1}, "title": "x"}, fragment="metadata"),
    Case("update unknown field", path=SESSION, body={"title": "x", "environment_id": "{environment}"}, fragment="environment_id"),
    Case("update agent null", path=SESSION, body={"agent": None}, fragment="agent"),
    Case("update agent text", path=SESSION, body={"agent": "{agent}"}, fragment="agent"),
    Case("update agent model", path=SESSION, body={"agent": {"model": "x"}}, fragment="model"),
    Case("update agent tools bad", path=SESSION, body={"agent": {"tools": [{"type": "x"}]}, "title": "x"}, fragment="tools"),
    Case("update agent tools twice", path=SESSION, body={"agent": {"tools": [custom(), custom()]}}, fragment="lookup"),
    Case("update vaults", path=SESSION, body={"vault_ids": []}, fragment="not yet supported"),
    Case("update vaults to some", path=SESSION, body={"vault_ids": ["vlt_x"], "title": "x"}, fragment="vault_ids"),
    Case("update budget", path=SESSION, body={"budget": {"type": "limit", "max_list_cost": {"amount": "1", "currency": "USD"}}}, status=LATER, fragment="budget"),
    Case("update archived", path=ARCHIVED, body={"title": "x"}, fragment="archived"),
    Case("update unknown", path=f"/v1/sessions/sesn_01{ONES}", body={"title": "x"}, status=404),
    Case("archive unknown", path=f"/v1/sessions/sesn_01{ONES}/archive", status=404),
    Case("delete unknown", "DELETE", f"/v1/sessions/sesn_01{ONES}", status=404),
    Case("thread unknown", "GET", f"{SESSION}/threads/sthr_01{ONES}", status=404),
    Case("thread of another session", "GET", f"{ARCHIVED}/threads/" + "{thread}", status=404),
    Case("thread events of another session", "GET", f"{ARCHIVED}/threads/" + "{thread}/events", status=404),
    Case("thread stream of another session", "GET", f"{ARCHIVED}/threads/" + "{thread}/stream", status=404),
    Case("thread stream unknown", "GET", f"{SESSION}/threads/sthr_01{ONES}/stream", status=404),
    Case("primary thread archived", path=SESSION + "/threads/{thread}/archive", fragment="primary"),
    Case("thread events ordered", "GET", SESSION + "/threads/{thread}/events", query="order=desc", fragment="order"),
    Case("thread events by type", "GET", SESSION + "/threads/{thread}/events", query="types[]=user.message", fragment="types"),
    Case("threads by unknown status", "GET", f"{SESSION}/threads", query="statuses[]=asleep", fragment="status"),
    Case("threads over the limit", "GET", f"{SESSION}/threads", query="limit=1001", fragment="limit"),
    Case("resource added", path=f"{SESSION}/resources", body={"type": "file", "file_id": "file_x"}, status=400),
    Case("resource unknown", "GET", f"{SESSION}/resources/sesrsc_01{ONES}", status=404),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(raw, names, case) -> None:
    def look() -> list[str]:
        return [raw.get(f"/v1/sessions/{names[each]}{more}").text for each in ("session", "archived") for more in ("", "/events")]

    def still(text: str) -> str:
        body = json.loads(text)
        # These two count the time of the question.
        body.get("stats", {}).pop("duration_seconds", None)
        return json.dumps(body)

    before = [still(text) for text in look()]
    refused(send(raw, case, names), case, names)
    assert before == [still(text) for text in look()]


def test_limits_that_are_still_fine(raw, names) -> None:
    body = {
        "agent": names["agent"],
        "environment_id": names["environment"],
        "title": "t" * 500,
        "metadata": {f"{number:02}".ljust(64, "k"): "v" * 512 for number in range(16)},
        "resources": [],
        "vault_ids": [],
        "initial_events": [],
        "budget": None,
    }
    response = raw.post("/v1/sessions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["status"] == "idle", "an empty list of events is none"
