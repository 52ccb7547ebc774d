"""Every refusal of the events' tables: lists, streams, what may be sent, and in which state."""

from __future__ import annotations

import json

import pytest

from conftest import custom, toolset
from support.cases import Case, fill, refused, send
from support.tail import open_sdk

ONES = "1" * 22
TEXT = {"type": "text", "text": "{tag}"}
SEARCH = {"type": "search_result", "source": "https://x.example", "title": "t", "citations": {"enabled": False}, "content": [TEXT]}


def message(*content, **fields) -> dict:
    return {"type": "user.message", "content": list(content), **fields}


def image(**source) -> dict:
    return message({"type": "image", "source": source})


def document(**source) -> dict:
    return message({"type": "document", "source": source})


def system(*content) -> dict:
    return {"type": "system.message", "content": list(content)}


def outcome(**fields) -> dict:
    fields = {"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "c"}} | fields
    return {key: value for key, value in fields.items() if value is not ...}


GOOD = message(TEXT)
PREFIX = "Invalid user.message event at events[0]: "

# name: events, fragment, status. Sent to an idle session, alone or behind a message that is fine.
EVENTS: dict[str, tuple[object, str | tuple[str, ...], int | tuple[int, ...]]] = {
    "none": ([], "events", 400),
    "null": (None, "events", 400),
    "a map": ({}, "events", 400),
    "text": ("hi", "events", 400),
    "too many": ([GOOD] * 101, ("events", "100"), 400),
    "a number": ([1], "events[0]", 400),
    "no type": ([{"content": [TEXT]}], ("events[0]", "type"), 400),
    "unknown type": ([{"type": "user.shout"}], "user.shout", 400),
    "outbound type": ([{"type": "agent.message", "content": [TEXT]}], "agent.message", 400),
    "status type": ([{"type": "session.status_idle"}], "session.status_idle", 400),
    "the second is bad": ([GOOD, {"type": "user.shout"}], "events[1]", 400),
    "message without content": ([{"type": "user.message"}], (PREFIX, "content"), 400),
    "message of null": ([{"type": "user.message", "content": None}], (PREFIX, "content"), 400),
    "message of nothing": ([message()], (PREFIX, "content"), 400),
    "message of text": ([{"type": "user.message", "content": "hi"}], (PREFIX, "content"), 400),
    "message with an unknown field": ([message(TEXT, mood="good")], "mood", 400),
    "empty text": ([message({"type": "text", "text": ""})], (PREFIX, "text"), 400),
    "text of a number": ([message({"type": "text", "text": 1})], (PREFIX, "text"), 400),
    "text with cache control": ([message({**TEXT, "cache_control": {"type": "ephemeral"}})], "cache_control", 400),
    "block without a type": ([message({"text": "x"})], PREFIX, 400),
    "block of an unknown type": ([message({"type": "video"})], PREFIX, 400),
    "redacted block": ([message({"type": "redacted"})], (PREFIX, "redacted"), 400),
    "search result in a message": ([message(SEARCH)], (PREFIX, "search_result"), 400),
    "tool result in a message": ([message({"type": "tool_result", "tool_use_id": "x"})], PREFIX, 400),
    "image without a source": ([message({"type": "image"})], (PREFIX, "source"), 400),
    "image of an unknown source": ([image(type="magic")], PREFIX, 400),
    "image of another type": ([image(type="base64", media_type="image/bmp", data="AAAA")], (PREFIX, "media_type"), 400),
    "image without data": ([image(type="base64", media_type="image/png")], (PREFIX, "data"), 400),
    "image of no base64": ([image(type="base64", media_type="image/png", data="!!!")], PREFIX, 400),
    "image of an unknown file": ([image(type="file", file_id=f"file_01{ONES}")], (PREFIX, "there is no file"), 400),
    "image of a bad url": ([image(type="url", url="not a url")], PREFIX, 400),
    "document without a source": ([message({"type": "document"})], (PREFIX, "source"), 400),
    "document of another text type": ([document(type="text", media_type="text/html", data="x")], PREFIX, 400),
    "document of an unknown file": ([document(type="file", file_id=f"file_01{ONES}")], (PREFIX, "there is no file"), 400),
    "document of no file's id": ([document(type="file", file_id="file_x")], (PREFIX, "file_id"), 400),
    "interrupt of an unknown thread": ([{"type": "user.interrupt", "session_thread_id": f"sthr_01{ONES}"}], "session_thread_id", (400, 404)),
    "interrupt of a number": ([{"type": "user.interrupt", "session_thread_id": 1}], "session_thread_id", 400),
    "confirmation without an id": ([{"type": "user.tool_confirmation", "result": "allow"}], "tool_use_id", 400),
    "confirmation of an empty id": ([{"type": "user.tool_confirmation", "tool_use_id": "", "result": "allow"}], "tool_use_id", 400),
    "confirmation of a long id": ([{"type": "user.tool_confirmation", "tool_use_id": "t" * 129, "result": "allow"}], "tool_use_id", 400),
    "confirmation of nothing pending": ([{"type": "user.tool_confirmation", "tool_use_id": f"sevt_01{ONES}", "result": "allow"}], ("user.tool_confirmation event at events[0]", "not a pending"), 400),
    "confirmation without a result": ([{"type": "user.tool_confirmation", "tool_use_id": "x"}], "result", 400),
    "confirmation of another kind": ([{"type": "user.tool_confirmation", "tool_use_id": "x", "result": "maybe"}], "result", 400),
    "allowed with a deny message": ([{"type": "user.tool_confirmation", "tool_use_id": "x", "result": "allow", "deny_message": "no"}], "deny_message", 400),
    "a long deny message": ([{"type": "user.tool_confirmation", "tool_use_id": "x", "result": "deny", "deny_message": "d" * 10_001}], "deny_message", 400),
    "custom result without an id": ([{"type": "user.custom_tool_result"}], "custom_tool_use_id", 400),
    "custom result of nothing pending": ([{"type": "user.custom_tool_result", "custom_tool_use_id": f"sevt_01{ONES}"}], "not a pending", 400),
    "custom result of text": ([{"type": "user.custom_tool_result", "custom_tool_use_id": "x", "content": "hi"}], "content", 400),
    "custom result of a redacted block": ([{"type": "user.custom_tool_result", "custom_tool_use_id": "x", "content": [{"type": "redacted"}]}], "content", 400),
    "custom result, error as text": ([{"type": "user.custom_tool_result", "custom_tool_use_id": "x", "is_error": "yes"}], "is_error", 400),
    "tool result in the cloud": ([{"type": "user.tool_result", "tool_use_id": f"sevt_01{ONES}", "content": [TEXT]}], "self", 400),
    "search result with holes": ([{"type": "user.custom_tool_result", "custom_tool_use_id": "x", "content": [{"type": "search_result", "source": "s"}]}], "content", 400),
    "outcome without a description": ([outcome(description=...)], ("user.define_outcome event at events[0]", "description"), 400),
    "outcome with an empty description": ([outcome(description="")], "description", 400),
    "outcome with a long description": ([outcome(description="d" * 65_537)], ("description", "65536"), 400),
    "outcome without a rubric": ([outcome(rubric=...)], "rubric", 400),
    "outcome with a rubric of null": ([outcome(rubric=None)], "rubric", 400),
    "outcome with a rubric of text": ([outcome(rubric="- good")], "rubric", 400),
    "outcome with a rubric of another type": ([outcome(rubric={"type": "url", "url": "https://x.example"})], "rubric", 400),
    "outcome with an empty rubric": ([outcome(rubric={"type": "text", "content": ""})], "rubric.content", 400),
    "outcome with a long rubric": ([outcome(rubric={"type": "text", "content": "r" * 262_145})], ("rubric.content", "262144"), 400),
    "outcome with a rubric of no file": ([outcome(rubric={"type": "file", "file_id": "rubric.md"})], "rubric.file_id", 400),
    "outcome with a rubric of an unknown file": ([outcome(rubric={"type": "file", "file_id": f"file_01{ONES}"})], ("rubric.file_id", "no file"), 400),
    "outcome of no iterations": ([outcome(max_iterations=0)], "max_iterations", 400),
    "outcome of too many iterations": ([outcome(max_iterations=21)], ("max_iterations", "20"), 400),
    "outcome with an id": ([outcome(outcome_id="outc_1")], "outcome_id", 400),
    "two outcomes": ([outcome(), outcome()], ("events[1]", "already active"), 400),
    "system message without content": ([system()], "content", 400),
    "system message of an image": ([system({"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}})], "content", 400),
    "system message, too long": ([system(*[TEXT] * 1001)], ("content", "1000"), 400),
    "system message not last": ([system(TEXT), GOOD], "system.message", 400),
    "two system messages": ([GOOD, system(TEXT), system(TEXT)], "system.message", 400),
    "initial unknown field": ([{**GOOD, "session_id": "x"}], "session_id", 400),
}  # fmt: skip


@pytest.fixture
def session(make, mock):
    mock.answer("ok")
    return make.session(tools=[custom()])


def quiet(raw, session) -> None:
    """Nothing was appended and nothing runs."""
    assert raw.get(f"/v1/sessions/{session.id}/events").json()["data"] == []
    assert raw.get(f"/v1/sessions/{session.id}").json()["status"] == "idle"


@pytest.mark.parametrize("name", EVENTS)
def test_send(raw, session, mock, name) -> None:
    events, fragment, status = EVENTS[name]
    names = {"tag": mock.model}
    case = Case(name, status=status, fragment=fragment)
    path = f"/v1/sessions/{session.id}/events"
    refused(raw.post(path, json={"events": fill(events, names)}), case, names)
    quiet(raw, session)
    if isinstance(events, list) and len(events) == 1:
        # All or nothing: the good one in front is not stored either.
        behind = Case(name, status=status)
        refused(raw.post(path, json={"events": fill([GOOD, *events], names)}), behind, names)
        quiet(raw, session)
    assert mock.requests() == []


def test_the_good_ones_are_good(raw, make, mock, client) -> None:
    """The control: blocks and events that the refused ones differ from by one thing."""
    mock.answer("ok")
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    for events in (
        [GOOD],
        [image(type="base64", media_type="image/png", data=png)],
        [document(type="text", media_type="text/plain", data="x")],
        # Keys of the other direction are ignored where they do not belong.
        [{**GOOD, "session_thread_id": "sthr_x"}],
        [GOOD, system(TEXT)],
        [GOOD] * 100,
        [{"type": "user.interrupt"}],
        [{"type": "user.interrupt", "session_thread_id": None}],
    ):
        session = make.session()
        response = raw.post(f"/v1/sessions/{session.id}/events", json={"events": fill(events, {"tag": mock.model})})
        assert response.status_code == 200, (events[0], response.text)
        assert len(response.json()["data"]) == len(events)


BODY = "/v1/sessions/{session}/events"
CASES = [
    Case("no events", path=BODY, body={}, fragment="events"),
    Case("another key", path=BODY, body={"events": [GOOD], "stream": True}, fragment="stream"),
    Case("list by an unknown type", "GET", BODY, query="types[]=user.shout", fragment="types"),
    Case("list by one unknown type", "GET", BODY, query="types[]=user.message&types[]=x", fragment="types"),
    Case("list deletions", "GET", BODY, query="types[]=session.deleted", fragment="types"),
    Case("list starts", "GET", BODY, query="types[]=event_start", fragment="types"),
    Case("list deltas", "GET", BODY, query="types[]=event_delta", fragment="types"),
    Case("list in an unknown order", "GET", BODY, query="order=up", fragment="order"),
    Case("list after an id", "GET", BODY, query="after_id=sevt_1", fragment="after_id"),
    Case("list over the limit", "GET", BODY, query="limit=1001", fragment="limit"),
    Case("list with a bad bound", "GET", BODY, query="created_at[gt]=now", fragment="created_at"),
    Case("stream with unknown previews", "GET", BODY + "/stream", query="event_deltas[]=agent.tool_use", fragment="event_deltas"),
    Case("stream with one unknown preview", "GET", BODY + "/stream", query="event_deltas[]=agent.message&event_deltas[]=x", fragment="event_deltas"),
    Case("stream with too many previews", "GET", BODY + "/stream", query="&".join(["event_deltas[]=agent.message"] * 101), fragment="event_deltas"),
    Case("stream with an unknown parameter", "GET", BODY + "/stream", query="since=1", fragment="since"),
    Case("alias with unknown previews", "GET", "/v1/sessions/{session}/stream", query="event_deltas[]=x", fragment="event_deltas"),
    Case("stream of an unknown session", "GET", f"/v1/sessions/sesn_01{ONES}/events/stream", status=404),
    Case("send to an unknown session", path=f"/v1/sessions/sesn_01{ONES}/events", body={"events": [GOOD]}, status=404),
    Case("list an unknown session", "GET", f"/v1/sessions/sesn_01{ONES}/events", status=404),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(raw, session, case) -> None:
    names = {"session": session.id, "tag": "x"}
    refused(send(raw, case, names), case, names)
    quiet(raw, session)


@pytest.mark.parametrize("position", ["", "x", "sevt_01" + ONES, "sevt_01" + ONES + ".5", "x.1", ".", "sevt_.9999999999999999999999"])
def test_a_position_that_never_was(raw, session, position) -> None:
    """`Last-Event-ID` is our own extension: a value it never gave must not hang or break anything."""
    with raw.stream("GET", f"/v1/sessions/{session.id}/events/stream", headers={"last-event-id": position}) as response:
        assert response.status_code in (200, 400)
        if response.status_code == 400:
            response.read()
            refused(response, Case(position, fragment="last-event-id"))


# States.


def idle_events(raw, session) -> list:
    return raw.get(f"/v1/sessions/{session.id}/events").json()["data"]


@pytest.mark.parametrize("pending", ["custom", "ask", "both"])
def test_waiting_sessions_take_answers_only(raw, client, make, mock, pending) -> None:
    calls = {
        "custom": [{"tool": {"name": "lookup", "input": {}}}],
        "ask": [{"tool": {"name": "bash", "input": {"command": "true"}}}],
    }
    mock.answer(*(calls["custom"] + calls["ask"] if pending == "both" else calls[pending]), turn=0)
    mock.answer("ok")
    session = make.session(tools=[toolset("always_ask"), custom()])
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        stop = tail.wait_idle("requires_action")["stop_reason"]
    before = idle_events(raw, session)
    path = f"/v1/sessions/{session.id}/events"
    waiting = "waiting on responses to events [" + stop["event_ids"][0]
    allowed = "only `user.tool_confirmation`, `user.custom_tool_result`, `user.tool_result`, or `user.interrupt` may be sent"
    names = {"tag": "x"}
    kinds = {event["id"]: event["type"] for event in before}
    custom_id = next((each for each in stop["event_ids"] if kinds[each] == "agent.custom_tool_use"), None)
    ask_id = next((each for each in stop["event_ids"] if kinds[each] == "agent.tool_use"), None)
    refusals = [
        ([GOOD], (waiting, allowed)),
        ([system(TEXT)], ""),
        ([{"type": "user.tool_confirmation", "tool_use_id": f"sevt_01{ONES}", "result": "allow"}], "not a pending"),
        ([{"type": "user.custom_tool_result", "custom_tool_use_id": f"sevt_01{ONES}"}], "not a pending"),
        ([{"type": "user.tool_result", "tool_use_id": stop["event_ids"][0]}], ""),
    ]
    if custom_id:
        refusals.append(([{"type": "user.tool_confirmation", "tool_use_id": custom_id, "result": "allow"}], ""))
        answer = {"type": "user.custom_tool_result", "custom_tool_use_id": custom_id}
        refusals.append(([answer, answer], ""))
        refusals.append(([answer, GOOD] if pending == "both" else [GOOD, answer], ""))
    if ask_id:
        refusals.append(([{"type": "user.custom_tool_result", "custom_tool_use_id": ask_id}], ""))
        answer = {"type": "user.tool_confirmation", "tool_use_id": ask_id, "result": "allow"}
        refusals.append(([answer, answer], ""))
    for events, fragment in refusals:
        refused(raw.post(path, json={"events": fill(events, names)}), Case(str(events)[:80], fragment=fragment))
        assert idle_events(raw, session) == before


def test_a_second_answer_is_refused(raw, client, make, mock) -> None:
    mock.answer({"tool": {"name": "lookup", "input": {}}}, turn=0)
    mock.answer("ok")
    session = make.session(tools=[custom()])
    path = f"/v1/sessions/{session.id}/events"
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        (identity,) = tail.wait_idle("requires_action")["stop_reason"]["event_ids"]
        answer = {"events": [{"type": "user.custom_tool_result", "custom_tool_use_id": identity}]}
        assert raw.post(path, json=answer).status_code == 200
        tail.wait_idle("end_turn")
    before = idle_events(raw, session)
    refused(raw.post(path, json=answer), Case("second answer", fragment="already answered"))
    assert idle_events(raw, session) == before


def test_archived_sessions_take_nothing(raw, make) -> None:
    session = make.session()
    raw.post(f"/v1/sessions/{session.id}/archive")
    before = idle_events(raw, session)
    for event in (GOOD, {"type": "user.interrupt"}, system(TEXT)):
        response = raw.post(f"/v1/sessions/{session.id}/events", json={"events": [fill(event, {"tag": "x"})]})
        refused(response, Case(event["type"], fragment=f"Cannot send events to archived session: {session.id}"))
    assert idle_events(raw, session) == before


def test_a_session_ended_by_an_error_takes_nothing(raw, client, make, mock) -> None:
    """A request that the model's API refuses as malformed cannot succeed later."""
    mock.answer({"error": {"status": 401, "type": "authentication_error", "message": "no"}})
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        tail.wait(lambda event: event["type"] in ("session.status_terminated", "session.status_idle"))
        ended = tail.records[-1]["type"] == "session.status_terminated"
    if ended:
        response = raw.post(f"/v1/sessions/{session.id}/events", json={"events": [fill(GOOD, {"tag": "x"})]})
        refused(response, Case("terminated", fragment="session is terminated"))


def test_an_answer_to_a_call_that_runs_is_refused(raw, client, make, mock) -> None:
    gate = mock.gate()
    mock.rules({"answer": [{"text": "a"}, {"gate": gate}]})
    session = make.session(tools=[custom()])
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        mock.wait_blocked(gate)
        before = json.dumps(idle_events(raw, session))
        for event in (
            {"type": "user.custom_tool_result", "custom_tool_use_id": f"sevt_01{ONES}"},
            {"type": "user.tool_confirmation", "tool_use_id": f"sevt_01{ONES}", "result": "allow"},
        ):
            refused(raw.post(f"/v1/sessions/{session.id}/events", json={"events": [event]}), Case(event["type"]))
        assert json.dumps(idle_events(raw, session)) == before
        mock.release(gate)
        tail.wait_idle("end_turn")
