"""The order of events, as whole sequences. The same logs also pass the checker, as every log of every test does."""

from __future__ import annotations

import pytest

from conftest import custom, toolset
from support.order import shape
from support.tail import open_sdk

START = ["session.status_running", "session.thread_status_running"]
MESSAGE = ["user.message"]


def request(*output: str, end: str = "span.model_request_end") -> list[str]:
    return ["span.model_request_start", *output, end]


def idle(reason: str) -> list[str]:
    return [f"session.thread_status_idle({reason})", "session.usage", f"session.status_idle({reason})"]


def log(client, session) -> list[str]:
    return shape(event.to_dict(mode="json") for event in client.beta.sessions.events.list(session.id))


def events(client, session, *types: str) -> list:
    return list(client.beta.sessions.events.list(session.id, types=list(types)))


def call(name: str, **given) -> dict:
    return {"tool": {"name": name, "input": given}}


@pytest.fixture
def turn(client, make):
    """Runs a session up to an idle event and returns it with its tail."""
    tails = []

    def run(*, tools=(), reason="end_turn", message="hi"):
        session = make.session(tools=list(tools))
        tail = open_sdk(client, session.id)
        tails.append(tail)
        make.say(session, message)
        tail.wait_idle(reason)
        return session, tail

    yield run
    for tail in tails:
        tail.close()


def test_plain_turn(client, turn, mock) -> None:
    mock.answer("hello")
    session, tail = turn()
    assert log(client, session) == START + MESSAGE + request("agent.message") + idle("end_turn")
    assert shape(tail.records) == MESSAGE + START + MESSAGE + request("agent.message") + idle("end_turn")


def test_thinking_turn(client, turn, mock) -> None:
    mock.rules({"answer": [{"thinking": "let me see"}, {"text": "hello"}]})
    session, _ = turn()
    assert log(client, session) == START + MESSAGE + request("agent.thinking", "agent.message") + idle("end_turn")
    (thinking,) = events(client, session, "agent.thinking")
    assert "let me see" not in str(thinking.to_dict()), "thinking is a signal without its text"


@pytest.mark.docker
def test_tool_turn(client, turn, mock) -> None:
    mock.answer({"text": "looking"}, call("bash", command="echo hi"), turn=0)
    mock.answer("done")
    session, _ = turn(tools=[toolset()])
    assert log(client, session) == (
        START + MESSAGE + request("agent.message", "agent.tool_use(bash)") + ["agent.tool_result(ok)"]
        + request("agent.message") + idle("end_turn")
    )  # fmt: skip


@pytest.mark.docker
def test_parallel_calls(client, turn, mock) -> None:
    mock.answer(
        call("bash", command="echo one > a.txt"), call("bash", command="echo two > b.txt"), call("glob", pattern="*.nothing"), turn=0
    )
    mock.answer("done")
    session, _ = turn(tools=[toolset()])
    uses = ["agent.tool_use(bash)", "agent.tool_use(bash)", "agent.tool_use(glob)"]
    assert log(client, session) == (
        START + MESSAGE + request(*uses) + ["agent.tool_result(ok)"] * 3 + request("agent.message") + idle("end_turn")
    )
    used = [event.id for event in events(client, session, "agent.tool_use")]
    results = [event.tool_use_id for event in events(client, session, "agent.tool_result")]
    assert sorted(used) == sorted(results)
    assert results.index(used[0]) < results.index(used[1]), "bash runs in the order of the calls"


@pytest.mark.docker
def test_ask_pause_with_partial_answers(client, turn, make, mock) -> None:
    mock.answer(call("bash", command="echo a"), call("bash", command="echo b"), call("glob", pattern="*"), turn=0)
    mock.answer("done")
    session, tail = turn(tools=[toolset("always_allow", bash="always_ask")], reason="requires_action")
    first, second, free = events(client, session, "agent.tool_use")
    paused = (
        START + MESSAGE + request("agent.tool_use(bash, ask)", "agent.tool_use(bash, ask)", "agent.tool_use(glob)")
        + ["agent.tool_result(ok)"] + idle("requires_action")
    )  # fmt: skip
    assert log(client, session) == paused
    (result,) = events(client, session, "agent.tool_result")
    assert result.tool_use_id == free.id, "what is allowed runs meanwhile"
    (waiting,) = events(client, session, "session.status_idle")
    assert waiting.stop_reason.event_ids == [first.id, second.id]

    make.send(session, {"type": "user.tool_confirmation", "tool_use_id": second.id, "result": "allow"})
    tail.wait_idle("requires_action", count=2)
    paused += ["user.tool_confirmation"] + idle("requires_action")
    assert log(client, session) == paused
    assert events(client, session, "session.status_idle")[-1].stop_reason.event_ids == [first.id]

    make.send(session, {"type": "user.tool_confirmation", "tool_use_id": first.id, "result": "allow"})
    tail.wait_idle("end_turn")
    assert log(client, session) == (
        paused + ["user.tool_confirmation"] + START + ["agent.tool_result(ok)"] * 2 + request("agent.message") + idle("end_turn")
    )


@pytest.mark.docker
def test_ask_denied(client, turn, make, mock) -> None:
    mock.answer(call("bash", command="echo a"), turn=0)
    mock.answer("understood")
    session, tail = turn(tools=[toolset("always_ask")], reason="requires_action")
    (use,) = events(client, session, "agent.tool_use")
    make.send(session, {"type": "user.tool_confirmation", "tool_use_id": use.id, "result": "deny", "deny_message": "not today 5512"})
    tail.wait_idle("end_turn")
    assert log(client, session) == (
        START + MESSAGE + request("agent.tool_use(bash, ask)") + idle("requires_action")
        + ["user.tool_confirmation"] + START + ["agent.tool_result(error)"] + request("agent.message") + idle("end_turn")
    )  # fmt: skip
    (result,) = events(client, session, "agent.tool_result")
    assert "not today 5512" in str(result.content)
    assert "not today 5512" in mock.requests()[-1]["body"]


def test_custom_tool(client, turn, make, mock) -> None:
    mock.answer({"text": "asking"}, call("lookup", key="k"), turn=0)
    mock.answer("thanks")
    session, tail = turn(tools=[custom()], reason="requires_action")
    (use,) = events(client, session, "agent.custom_tool_use")
    assert use.input == {"key": "k"}
    sent = make.send(session, {"type": "user.custom_tool_result", "custom_tool_use_id": use.id, "content": [{"type": "text", "text": "value 99"}]})
    assert sent.data[0].processed_at is not None, "results are processed on receipt"
    tail.wait_idle("end_turn")
    assert log(client, session) == (
        START + MESSAGE + request("agent.message", "agent.custom_tool_use(lookup)") + idle("requires_action")
        + ["user.custom_tool_result"] + START + request("agent.message") + idle("end_turn")
    )  # fmt: skip
    assert "value 99" in mock.requests()[-1]["body"]


def test_two_custom_calls_answered_one_by_one(client, turn, make, mock) -> None:
    mock.answer(call("lookup", key="a"), call("lookup", key="b"), turn=0)
    mock.answer("thanks")
    session, tail = turn(tools=[custom()], reason="requires_action")
    first, second = events(client, session, "agent.custom_tool_use")
    answer = {"type": "user.custom_tool_result", "content": [{"type": "text", "text": "v"}]}
    make.send(session, {**answer, "custom_tool_use_id": second.id})
    tail.wait_idle("requires_action", count=2)
    assert events(client, session, "session.status_idle")[-1].stop_reason.event_ids == [first.id]
    make.send(session, {**answer, "custom_tool_use_id": first.id})
    tail.wait_idle("end_turn")
    assert log(client, session) == (
        START + MESSAGE + request("agent.custom_tool_use(lookup)", "agent.custom_tool_use(lookup)") + idle("requires_action")
        + ["user.custom_tool_result"] + idle("requires_action")
        + ["user.custom_tool_result"] + START + request("agent.message") + idle("end_turn")
    )  # fmt: skip


def test_all_answers_in_one_request(client, turn, make, mock) -> None:
    mock.answer(call("lookup", key="a"), call("lookup", key="b"), turn=0)
    mock.answer("thanks")
    session, tail = turn(tools=[custom()], reason="requires_action")
    uses = events(client, session, "agent.custom_tool_use")
    make.send(session, *({"type": "user.custom_tool_result", "custom_tool_use_id": use.id} for use in uses))
    tail.wait_idle("end_turn")
    assert log(client, session) == (
        START + MESSAGE + request("agent.custom_tool_use(lookup)", "agent.custom_tool_use(lookup)") + idle("requires_action")
        + ["user.custom_tool_result"] * 2 + START + request("agent.message") + idle("end_turn")
    )  # fmt: skip


def test_interrupt_while_idle(client, turn, make, mock) -> None:
    mock.answer("ok")
    session, tail = turn()
    sent = make.send(session, {"type": "user.interrupt"})
    assert sent.data[0].processed_at is not None
    tail.wait(lambda event: event["type"] == "user.interrupt" and event["processed_at"] is not None)
    assert log(client, session) == START + MESSAGE + request("agent.message") + idle("end_turn") + ["user.interrupt"]
    assert client.beta.sessions.retrieve(session.id).status == "idle"
    make.say(session, "still there?")
    tail.wait_idle("end_turn", count=2)


def test_interrupt_while_the_model_streams(client, make, mock) -> None:
    mock.rules(
        {"when": {"nth": 1}, "answer": [{"text": ["half an"]}, {"hang": True}]},
        {"answer": "fresh"},
    )
    session = make.session()
    with open_sdk(client, session.id, event_deltas=["agent.message"]) as tail:
        make.say(session, "hi")
        tail.wait_type("event_delta")
        make.send(session, {"type": "user.interrupt"})
        tail.wait_idle("end_turn")
        first = START + MESSAGE + ["span.model_request_start"]
        found = log(client, session)
        assert found[: len(first)] == first
        rest = found[len(first) :]
        assert "agent.message" not in rest, "no message for a partial text"
        assert sorted(rest[:2]) == sorted(["user.interrupt", rest[0] if rest[0].startswith("span") else rest[1]])
        assert {rest[0], rest[1]} - {"user.interrupt"} <= {"span.model_request_end", "span.model_request_end(error)"}
        assert rest[2:] == idle("end_turn")
        assert mock.wait_requests(1, ended=True)[0]["end"] == "aborted", "the model was told to stop"
        make.say(session, "again")
        tail.wait_idle("end_turn", count=2)
    assert "half an" not in mock.requests()[-1]["body"]


@pytest.mark.docker
def test_interrupt_while_a_command_runs(client, make, mock) -> None:
    mock.answer(call("bash", command="echo started; sleep 600"), turn=0)
    mock.answer("fresh")
    session = make.session(tools=[toolset()])
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        tail.wait_type("agent.tool_use")
        tail.wait_type("span.model_request_end")
        make.send(session, {"type": "user.interrupt"})
        tail.wait_idle("end_turn")
        found = log(client, session)
        head = START + MESSAGE + request("agent.tool_use(bash)")
        assert found[: len(head)] == head
        rest = found[len(head) :]
        assert sorted(rest[:2]) == ["agent.tool_result(error)", "user.interrupt"]
        assert rest[2:] == idle("end_turn")
        make.say(session, "again")
        tail.wait_idle("end_turn", count=2)


def test_interrupt_while_waiting_for_a_confirmation(client, turn, make, mock) -> None:
    mock.answer(call("bash", command="echo a"), call("bash", command="echo b"), turn=0)
    mock.answer("fresh")
    session, tail = turn(tools=[toolset("always_ask")], reason="requires_action")
    make.send(session, {"type": "user.interrupt"})
    tail.wait_idle("end_turn")
    assert log(client, session) == (
        START + MESSAGE + request("agent.tool_use(bash, ask)", "agent.tool_use(bash, ask)") + idle("requires_action")
        + ["user.interrupt"] + ["agent.tool_result(error)"] * 2 + idle("end_turn")
    )  # fmt: skip
    assert len(mock.requests()) == 1, "no model request after an interrupt"
    make.say(session, "again")
    tail.wait_idle("end_turn", count=2)


def test_interrupt_while_waiting_for_a_custom_tool(client, turn, make, mock) -> None:
    mock.answer(call("lookup", key="a"), turn=0)
    mock.answer("fresh")
    session, tail = turn(tools=[custom()], reason="requires_action")
    make.send(session, {"type": "user.interrupt"})
    tail.wait_idle("end_turn")
    assert log(client, session) == (
        START + MESSAGE + request("agent.custom_tool_use(lookup)") + idle("requires_action") + ["user.interrupt"] + idle("end_turn")
    )
    make.say(session, "again")
    tail.wait_idle("end_turn", count=2)
    last = mock.body(mock.requests()[-1])
    assert "tool_result" in str(last["messages"]), "the model learns that its call came to nothing"


def test_interrupt_and_message_in_one_request(client, make, mock) -> None:
    mock.rules(
        {"when": {"nth": 1}, "answer": [{"text": ["half"]}, {"hang": True}]},
        {"answer": "fresh"},
    )
    session = make.session()
    with open_sdk(client, session.id, event_deltas=["agent.message"]) as tail:
        make.say(session, "hi")
        tail.wait_type("event_delta")
        make.send(session, {"type": "user.interrupt"}, {"type": "user.message", "content": [{"type": "text", "text": "instead"}]})
        tail.wait_idle("end_turn", count=2)
    found = log(client, session)
    at = found.index("session.status_idle(end_turn)")
    assert found[at + 1 :] == START + MESSAGE + request("agent.message") + idle("end_turn")


def test_retry_then_success(client, turn, mock) -> None:
    mock.rules(
        {"times": 1, "answer": [{"error": {"status": 529, "type": "overloaded_error", "retry_after_ms": 10}}]},
        {"answer": "recovered"},
    )
    session, _ = turn()
    assert log(client, session) == (
        START + MESSAGE + request(end="span.model_request_end(error)")
        + ["session.error(model_overloaded_error, retrying)", "session.status_rescheduled", "session.thread_status_rescheduled"]
        + START + request("agent.message") + idle("end_turn")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "kind", "name"),
    [
        (429, "rate_limit_error", "model_rate_limited_error"),
        (500, "api_error", "model_request_failed_error"),
        (529, "overloaded_error", "model_overloaded_error"),
    ],
)
def test_each_transient_failure_is_named(client, turn, mock, status, kind, name) -> None:
    mock.rules(
        {"times": 1, "answer": [{"error": {"status": status, "type": kind, "retry_after_ms": 10}}]},
        {"answer": "recovered"},
    )
    session, _ = turn()
    assert f"session.error({name}, retrying)" in log(client, session)


def test_a_stream_that_breaks_in_the_middle_is_retried(client, turn, mock) -> None:
    mock.rules(
        {"times": 1, "answer": [{"text": ["lost words"]}, {"cut": "abort"}]},
        {"answer": "recovered"},
    )
    session, _ = turn()
    found = log(client, session)
    assert found.count("agent.message") == 1 and "session.status_rescheduled" in found
    (message,) = events(client, session, "agent.message")
    assert message.content[0].text == "recovered"


def test_retries_exhausted(client, turn, make, mock) -> None:
    # The model sees both messages then: what failed was said, and stays said.
    mock.rules({"when": {"contains": "hello again"}, "answer": "back"}, {"answer": [{"error": {"status": 529, "type": "overloaded_error", "retry_after_ms": 1}}]})
    session, tail = turn(reason="retries_exhausted", message="fail please")
    found = log(client, session)
    attempt = request(end="span.model_request_end(error)")
    again = ["session.error(model_overloaded_error, retrying)", "session.status_rescheduled", "session.thread_status_rescheduled"] + START
    rounds = found.count("session.error(model_overloaded_error, retrying)")
    assert rounds >= 1
    assert found == (
        START + MESSAGE + (attempt + again) * rounds + attempt
        + ["session.error(model_overloaded_error, exhausted)"] + idle("retries_exhausted")
    )  # fmt: skip
    make.say(session, "hello again")
    tail.wait_idle("end_turn")


def test_refusal(client, turn, make, mock) -> None:
    mock.rules({"when": {"contains": "good thing"}, "answer": "fine"}, {"answer": [{"refusal": {"category": "cyber", "explanation": "no"}}]})
    session, tail = turn(reason="refusal", message="bad thing")
    found = log(client, session)
    assert found[:3] == START + MESSAGE and found[-3:] == idle("refusal")
    (event,) = events(client, session, "session.status_idle")
    assert (event.stop_details.type, event.stop_details.category) == ("refusal", "cyber")
    make.say(session, "good thing")
    tail.wait_idle("end_turn")
