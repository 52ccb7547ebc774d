"""Sessions and threads through the official client."""

from __future__ import annotations

import uuid

import anthropic
import pytest

from conftest import custom, toolset
from support.registry import covers
from support.tail import open_raw, open_sdk


@covers("beta.sessions.create", "beta.sessions.retrieve")
def test_create_takes_a_snapshot(client, make) -> None:
    agent = make.agent(system="first", tools=[toolset()])
    session = make.session(agent, title="t", metadata={"k": "v"})
    assert session.id.startswith("sesn_01") and session.status == "idle" and session.type == "session"
    assert (session.title, session.metadata, session.environment_id) == ("t", {"k": "v"}, make.environment_id)
    assert (session.agent.id, session.agent.version, session.agent.system) == (agent.id, 1, "first")
    assert (session.resources, session.vault_ids, session.outcome_evaluations) == ([], [], [])
    assert session.archived_at is None
    client.beta.agents.update(agent.id, system="second")
    found = client.beta.sessions.retrieve(session.id)
    assert found.agent.system == "first" and found.agent.version == 1
    pinned = client.beta.sessions.create(agent={"type": "agent", "id": agent.id, "version": 1}, environment_id=make.environment_id)
    assert pinned.agent.system == "first"
    assert make.session(agent).agent.system == "second"


def test_the_session_object_to_the_field(client, make, raw) -> None:
    session = make.session()
    body = raw.get(f"/v1/sessions/{session.id}").json()
    for key in ("title", "budget", "deployment_id", "archived_at"):
        assert key in body and body[key] is None
    assert set(body["usage"]) >= {
        "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation", "active_seconds", "list_cost", "server_tool_use",
    }  # fmt: skip
    assert set(body["stats"]) >= {"active_seconds", "duration_seconds"}
    for key in ("metadata", "created_at", "updated_at", "archived_at"):
        assert key not in body["agent"]
    for key in ("type", "id", "version", "name", "model", "execution_identity", "tools", "mcp_servers", "skills"):
        assert key in body["agent"]


def test_overrides(client, make, mock) -> None:
    agent = make.agent(system="base", tools=[toolset()])

    def create(**overrides):
        form = {"type": "agent_with_overrides", "id": agent.id, **overrides}
        return client.beta.sessions.create(agent=form, environment_id=make.environment_id).agent

    assert create().system == "base"
    assert create(system=None).system is None
    assert create(system="own").system == "own"
    assert create(tools=[]).tools == [] and create(tools=None).tools == []
    assert create(tools=[custom()]).tools[0].type == "custom"
    moved = create(model={"id": mock.model + "-x"})
    assert moved.model.id == mock.model + "-x" and (moved.id, moved.version) == (agent.id, 1)
    assert client.beta.agents.retrieve(agent.id).system == "base"


def test_initial_events_start_at_once(client, make, mock) -> None:
    gate = mock.gate()
    mock.rules({"answer": [{"start": True}, {"gate": gate}, {"text": "hello"}]})
    session = make.session(initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "go"}]}])
    assert session.status == "running"
    assert client.beta.sessions.retrieve(session.id).status == "running"
    # Opened after the fact, within the window: it starts with the first event.
    with open_sdk(client, session.id) as tail:
        mock.release(gate)
        tail.wait_idle("end_turn")
        assert [event["type"] for event in tail.records if event["type"] == "agent.message"] == ["agent.message"]
    assert client.beta.sessions.retrieve(session.id).status == "idle"


def test_usage_and_stats_are_counted(client, make, mock) -> None:
    usage = {"input_tokens": 11, "output_tokens": 7, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3}
    mock.answer("one", {"usage": usage})
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        tail.wait_idle("end_turn")
        make.say(session, "again")
        tail.wait_idle("end_turn", count=2)
        snapshot = tail.wait_type("session.usage", count=2)
    found = client.beta.sessions.retrieve(session.id)
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.cache_read_input_tokens) == (22, 14, 10)
    assert snapshot["usage"]["output_tokens"] == 14
    assert found.stats.active_seconds > 0 and found.stats.duration_seconds >= found.stats.active_seconds


@covers("beta.sessions.update")
def test_update(client, make) -> None:
    session = make.session(title="one", metadata={"a": "1", "b": "2"})
    with open_sdk(client, session.id) as tail:
        changed = client.beta.sessions.update(session.id, title="two", metadata={"a": None, "c": "3"})
        assert (changed.title, changed.metadata) == ("two", {"b": "2", "c": "3"})
        assert changed.updated_at > session.updated_at
        event = tail.wait_type("session.updated")
        assert (event["title"], event["metadata"]) == ("two", {"b": "2", "c": "3"})
        assert "agent" not in event and "budget" not in event
        same = client.beta.sessions.update(session.id, title="two", metadata={"c": "3"})
        assert same.updated_at == changed.updated_at, "nothing changed: no event, no new time"
        assert (same.title, same.metadata, same.agent) == (changed.title, changed.metadata, changed.agent)
        tools = client.beta.sessions.update(session.id, agent={"tools": [custom()]})
        assert tools.agent.tools[0].name == "lookup" and tools.agent.version == 1
        event = tail.wait_type("session.updated", count=2)
        assert event["agent"]["tools"][0]["name"] == "lookup" and "title" not in event
        cleared = client.beta.sessions.update(session.id, title=None)
        assert cleared.title is None
        tail.wait_type("session.updated", count=3)
    assert client.beta.sessions.retrieve(session.id).updated_at == cleared.updated_at


def test_new_tools_hold_from_the_next_turn(client, make, mock) -> None:
    mock.answer("ok")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        tail.wait_idle("end_turn")
        client.beta.sessions.update(session.id, agent={"tools": [custom("fresh")]})
        make.say(session, "and now")
        tail.wait_idle("end_turn", count=2)
    first, second = [mock.body(entry) for entry in mock.requests()]
    assert "fresh" not in [tool["name"] for tool in first.get("tools", [])]
    assert "fresh" in [tool["name"] for tool in second["tools"]]


@covers("beta.sessions.list")
def test_list_filters_and_both_directions(client, make, mock) -> None:
    agent = make.agent()
    sessions = [make.session(agent, title=f"{number}") for number in range(7)]
    newest = [session.id for session in reversed(sessions)]

    def ids(**options) -> list[str]:
        return [session.id for session in client.beta.sessions.list(agent_id=agent.id, **options)]

    assert ids(limit=3) == newest
    assert ids(limit=3, order="asc") == newest[::-1]
    # Page by page forward, then back again.
    pages = [client.beta.sessions.list(agent_id=agent.id, limit=3)]
    assert pages[0].prev_page is None
    while pages[-1].next_page is not None:
        pages.append(client.beta.sessions.list(agent_id=agent.id, limit=3, page=pages[-1].next_page))
    assert [[session.id for session in page.data] for page in pages] == [newest[:3], newest[3:6], newest[6:]]
    back = client.beta.sessions.list(agent_id=agent.id, limit=3, page=pages[2].prev_page)
    assert [session.id for session in back.data] == newest[3:6] and back.next_page is not None
    back = client.beta.sessions.list(agent_id=agent.id, limit=3, page=back.prev_page)
    assert [session.id for session in back.data] == newest[:3] and back.prev_page is None
    # Filters.
    middle = sessions[3].created_at
    assert ids(created_at_gte=middle) == newest[:4] and ids(created_at_gt=middle) == newest[:3]
    assert ids(created_at_lte=middle) == newest[3:] and ids(created_at_lt=middle) == newest[4:]
    client.beta.sessions.archive(sessions[0].id)
    assert ids() == newest[:-1] and ids(include_archived=True) == newest
    assert ids(statuses=["running"]) == [] and ids(statuses=["idle", "running"]) == newest[:-1]
    assert ids(statuses=["terminated"]) == [] and ids(statuses=["terminated"], include_archived=True) == newest[-1:]
    client.beta.agents.update(agent.id, name="other")
    second = make.session(agent)
    assert ids(agent_version=2) == [second.id] and ids(agent_version=1) == newest[:-1]


def test_automatic_paging_goes_both_ways(client, make) -> None:
    agent = make.agent()
    sessions = [make.session(agent).id for _ in range(5)]
    page = client.beta.sessions.list(agent_id=agent.id, limit=2, order="asc")
    forward = [page]
    while forward[-1].has_next_page():
        forward.append(forward[-1].get_next_page())
    assert [session.id for each in forward for session in each.data] == sessions
    backward = [forward[-1]]
    while backward[-1].prev_page is not None:
        backward.append(client.beta.sessions.list(agent_id=agent.id, limit=2, order="asc", page=backward[-1].prev_page))
    assert [session.id for each in reversed(backward) for session in each.data] == sessions


@covers("beta.sessions.archive")
def test_archive_ends_the_session(client, make, mock) -> None:
    mock.answer("ok")
    session = make.session(title="t")
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        tail.wait_idle("end_turn")
        archived = client.beta.sessions.archive(session.id)
        assert archived.archived_at is not None and archived.status == "terminated"
        tail.wait_end()
        assert [event["type"] for event in tail.records][-2:] == ["session.thread_status_terminated", "session.status_terminated"]
    assert client.beta.sessions.archive(session.id) == archived
    with pytest.raises(anthropic.BadRequestError, match=f"Cannot send events to archived session: {session.id}"):
        make.say(session, "more")
    assert [event.type for event in client.beta.sessions.events.list(session.id)][-1] == "session.status_terminated"
    # A loop that waits for a terminal event ends.
    with open_sdk(client, session.id) as late:
        late.wait_end()
        assert [event["type"] for event in late.records] == ["session.status_terminated"]


@covers("beta.sessions.delete")
def test_delete_ends_streams_and_forgets(client, make, mock) -> None:
    mock.answer("ok")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        tail.wait_idle("end_turn")
        deleted = client.beta.sessions.delete(session.id)
        assert (deleted.id, deleted.type) == (session.id, "session_deleted")
        tail.wait_end()
        assert tail.records[-1]["type"] == "session.deleted"
    for call in (client.beta.sessions.retrieve, client.beta.sessions.delete, client.beta.sessions.archive):
        with pytest.raises(anthropic.NotFoundError):
            call(session.id)
    with pytest.raises(anthropic.NotFoundError):
        client.beta.sessions.events.list(session.id)
    with pytest.raises(anthropic.NotFoundError):
        make.say(session, "anyone?")


def test_running_sessions_are_neither_archived_nor_deleted(client, make, mock) -> None:
    gate = mock.gate()
    mock.rules({"answer": [{"start": True}, {"gate": gate}, {"text": "done"}]})
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        mock.wait_blocked(gate)
        with pytest.raises(anthropic.BadRequestError, match="running"):
            client.beta.sessions.archive(session.id)
        with pytest.raises(anthropic.BadRequestError, match="running"):
            client.beta.sessions.delete(session.id)
        with pytest.raises(anthropic.BadRequestError, match="running"):
            client.beta.sessions.update(session.id, agent={"tools": []})
        assert client.beta.sessions.update(session.id, title="while running").title == "while running"
        mock.release(gate)
        tail.wait_idle("end_turn")


@covers(
    "beta.sessions.threads.list",
    "beta.sessions.threads.retrieve",
    "beta.sessions.threads.archive",
    "beta.sessions.threads.events.list",
    "beta.sessions.threads.events.stream",
)
def test_the_primary_thread(client, make, mock, raw) -> None:
    mock.answer("ok")
    session = make.session()
    (thread,) = client.beta.sessions.threads.list(session.id)
    assert thread.id.startswith("sthr_01") and thread.session_id == session.id and thread.parent_thread_id is None
    assert thread.type == "session_thread" and thread.status == "idle"
    assert client.beta.sessions.threads.retrieve(thread.id, session_id=session.id) == thread
    stream = client.beta.sessions.threads.events.stream(thread.id, session_id=session.id)
    from support.tail import Tail

    with Tail(stream, stream.response, name="thread stream") as tail:
        make.say(session, "hi")
        tail.wait(lambda event: event["type"] == "session.thread_status_idle")
    listed = list(client.beta.sessions.threads.events.list(thread.id, session_id=session.id))
    assert [event.type for event in listed if event.type.startswith("agent.")] == ["agent.message"]
    names = {event.session_thread_id for event in listed if event.type.startswith("session.thread_status")}
    assert names == {thread.id}
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.threads.archive(thread.id, session_id=session.id)
    body = raw.get(f"/v1/sessions/{session.id}/threads/{thread.id}").json()
    assert "multiagent" not in body["agent"] and body["archived_at"] is None


def test_the_launch_era_stream_alias(client, make, mock, raw) -> None:
    mock.answer("ok")
    session = make.session()
    with open_raw(raw, f"/v1/sessions/{session.id}/stream") as tail:
        assert tail.response.headers["content-type"].startswith("text/event-stream")
        assert tail.response.headers["cache-control"] == "no-cache"
        assert tail.response.headers["request-id"].startswith("req_")
        make.say(session, "hi")
        tail.wait_idle("end_turn")


def test_foreign_sessions_do_not_exist(client, make, other) -> None:
    session = make.session(title=uuid.uuid4().hex)
    assert other.get(f"/v1/sessions/{session.id}").status_code == 404
    assert session.id not in other.get("/v1/sessions", params={"limit": 1000, "include_archived": "true"}).text
