"""Outcomes from a client's side: events, their order and their fields, and what the session shows."""

from __future__ import annotations

import anthropic
import pytest

from conftest import custom, toolset
from support import order
from support.outcomes import OUTPUTS, agent_requests, define, gives, grader, gradings, last_user_text
from support.tail import open_sdk

pytestmark = pytest.mark.docker

START, ONGOING, END = (f"span.outcome_evaluation_{name}" for name in ("start", "ongoing", "end"))
BEGIN = ["session.status_running", "session.thread_status_running"]
CALL = ["span.model_request_start", "agent.tool_use(bash)", "span.model_request_end", "agent.tool_result(ok)"]
SAYS = ["span.model_request_start", "agent.message", "span.model_request_end"]
IDLE = ["session.thread_status_idle(end_turn)", "session.usage", "session.status_idle(end_turn)"]
NOTHING = {name: 0 for name in order.USAGE_FIELDS}


def writes(text: str) -> dict:
    return {"tool": {"name": "bash", "input": {"command": f"echo '{text}' > {OUTPUTS}/report.md"}}}


def listed(client, session) -> list[dict]:
    return [event.to_dict(mode="json") for event in client.beta.sessions.events.list(session.id)]


def evaluation(client, session):
    (found,) = client.beta.sessions.retrieve(session.id).outcome_evaluations
    return found


def evaluations(events: list[dict]) -> list[dict]:
    return [event for event in events if event["type"].startswith("span.outcome") and event["type"] != ONGOING]


def ends(events: list[dict]) -> list[str]:
    return [event["result"] for event in events if event["type"] == END]


def shape(events: list[dict]) -> list[str]:
    return [order.short(event) for event in events if event["type"] != ONGOING]


def test_satisfied_after_two_revisions(client, make, mock) -> None:
    grader(mock, "needs_revision", "needs_revision", "satisfied")
    for turn, text in enumerate(("one", "two", "three")):
        mock.answer(writes(text), turn=2 * turn)
        mock.answer(f"Written: {text}.", turn=2 * turn + 1)
    session = make.session(tools=[toolset()])
    with open_sdk(client, session.id) as tail:
        (defined,) = make.send(session, define(max_iterations=5)).data
        tail.wait_idle(timeout=90)
        files = list(client.beta.files.list(scope_id=session.id))
    events = listed(client, session)
    assert order.dedupe(tail.records) == events
    round = [*CALL, *SAYS, START, END]
    assert shape(events) == ["user.define_outcome", *BEGIN, *round, *round, *round, *IDLE]

    first = events[0]
    assert first == defined.to_dict(mode="json")
    assert first["outcome_id"].startswith("outc_01") and first["processed_at"] is not None
    assert {key: first[key] for key in ("description", "rubric", "max_iterations")} == {
        "description": "Write the report.",
        "rubric": {"type": "text", "content": "- Has a title"},
        "max_iterations": 5,
    }
    spans = evaluations(events)
    for number, (start, end) in enumerate(zip(spans[::2], spans[1::2])):
        assert set(start) == {"type", "id", "processed_at", "outcome_id", "iteration"}
        assert set(end) == set(start) | {"outcome_evaluation_start_id", "result", "explanation", "usage"}
        assert start["iteration"] == end["iteration"] == number
        assert start["outcome_id"] == end["outcome_id"] == first["outcome_id"]
        assert end["outcome_evaluation_start_id"] == start["id"]
        assert set(end["usage"]) == set(order.USAGE_FIELDS) and end["usage"]["output_tokens"] > 0
    assert ends(events) == ["needs_revision", "needs_revision", "satisfied"]
    explanation = spans[1]["explanation"]
    for part in ("The summary.", "[not met] Has a title: report.md has none", "Gap: No title", "Change: Add one"):
        assert part in explanation, explanation

    found = evaluation(client, session)
    assert (found.type, found.outcome_id, found.description) == ("outcome_evaluation", first["outcome_id"], "Write the report.")
    assert (found.result, found.iteration, found.explanation) == ("satisfied", 2, spans[5]["explanation"])
    assert found.completed_at is not None
    one = next(each for each in client.beta.sessions.list(agent_id=session.agent.id) if each.id == session.id)
    assert one.outcome_evaluations == [found]
    # What the agent wrote is there with the idle event, as it was judged last.
    (file,) = files
    assert client.beta.files.download(file.id).read() == b"three\n"

    # The task is the agent's first message, and each explanation a message of its own.
    asked = agent_requests(mock)
    assert last_user_text(asked[0]).startswith("Write the report.\n") and OUTPUTS in last_user_text(asked[0])
    assert "Has a title" not in last_user_text(asked[0]), "the rubric is the grader's"
    assert explanation in last_user_text(asked[2]) and "needs revision" in last_user_text(asked[2])
    for earlier, later in zip(asked, asked[1:]):
        before, after = (str(each["messages"]).replace(", 'cache_control': {'type': 'ephemeral'}", "") for each in (earlier, later))
        assert after.startswith(before[:-2]), "a prompt is only ever extended"

    # Graders are paid for, too.
    usage = client.beta.sessions.retrieve(session.id).usage
    spent = [event["model_usage"] for event in events if event["type"] == "span.model_request_end"]
    spent += [event["usage"] for event in events if event["type"] == END]
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens"):
        assert getattr(usage, name) == sum(each[name] for each in spent), name


def test_out_of_iterations(client, make, mock) -> None:
    grader(mock, "needs_revision", "needs_revision")
    mock.answer("First.", turn=0)
    mock.answer("Second.", turn=1)
    mock.answer("I could not do it all.", turn=2)
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define(max_iterations=2))
        tail.wait_idle()
    events = listed(client, session)
    # One more turn, and no evaluation after it.
    assert shape(events) == ["user.define_outcome", *BEGIN, *SAYS, START, END, *SAYS, START, END, *SAYS, *IDLE]
    assert ends(events) == ["needs_revision", "max_iterations_reached"]
    assert "last evaluation" in last_user_text(agent_requests(mock)[2])
    found = evaluation(client, session)
    assert (found.result, found.iteration) == ("max_iterations_reached", 1) and found.completed_at is not None


def test_a_rubric_that_does_not_apply(client, make, mock) -> None:
    grader(mock, {"criteria": [], "result": "failed", "summary": "The rubric is about cakes."})
    mock.answer("Done.")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define("Write the report.", "- Tastes sweet"))
        tail.wait_idle()
    events = listed(client, session)
    assert shape(events) == ["user.define_outcome", *BEGIN, *SAYS, START, END, *IDLE]
    assert ends(events) == ["failed"] and evaluations(events)[1]["explanation"] == "The rubric is about cakes."
    found = evaluation(client, session)
    assert (found.result, found.iteration, found.explanation) == ("failed", 0, "The rubric is about cakes.")


def test_interrupted_before_grading(client, make, mock) -> None:
    gate = mock.gate()
    mock.rules({"answer": [{"start": True}, {"gate": gate}, {"text": "never"}]})
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define())
        mock.wait_blocked(gate)
        assert evaluation(client, session).result == "running"
        make.send(session, {"type": "user.interrupt"})
        tail.wait_idle("end_turn")
    events = listed(client, session)
    (end,) = [event for event in events if event["type"] == END]
    assert (end["outcome_evaluation_start_id"], end["result"], end["explanation"], end["iteration"]) == ("", "interrupted", "", 0)
    assert end["usage"] == NOTHING
    assert not any(event["type"] == START for event in events)
    assert shape(events)[-3:] == IDLE
    found = evaluation(client, session)
    assert (found.result, found.explanation) == ("interrupted", None) and found.completed_at is not None


def test_interrupted_during_grading(client, make, mock) -> None:
    gate = mock.gate()
    grader(mock, [{"start": True}, {"gate": gate}, gives("satisfied")])
    mock.answer("Done.")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define())
        mock.wait_blocked(gate)
        assert evaluation(client, session).result == "evaluating"
        assert client.beta.sessions.retrieve(session.id).status == "running"
        make.send(session, {"type": "user.interrupt"})
        tail.wait_idle("end_turn")
    mock.release(gate)
    events = listed(client, session)
    start, end = evaluations(events)
    assert (end["outcome_evaluation_start_id"], end["result"], end["explanation"]) == (start["id"], "interrupted", "")
    assert end["usage"] == NOTHING
    assert evaluation(client, session).result == "interrupted"
    # An ordinary conversation again.
    mock.answer("hello", contains="how are you")
    with open_sdk(client, session.id) as tail:
        make.say(session, "how are you")
        tail.wait_idle("end_turn")
    assert len(evaluations(listed(client, session))) == 2


def test_one_outcome_after_the_other(client, make, mock) -> None:
    gate = mock.gate()
    grader(mock, "satisfied", "satisfied")
    mock.rules({"when": {"turn": 1}, "answer": [{"start": True}, {"gate": gate}, {"text": "second"}]})
    mock.answer("done")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define("The first."))
        tail.wait_idle("end_turn")
        make.send(session, define("The second."))
        mock.wait_blocked(gate)
        before = listed(client, session)
        with pytest.raises(anthropic.BadRequestError, match=r"Invalid user.define_outcome event at events\[0\]: an outcome is already active"):
            make.send(session, define("The third."))
        assert listed(client, session) == before, "a refusal leaves nothing behind"
        mock.release(gate)
        tail.wait_idle("end_turn", count=2)
    found = client.beta.sessions.retrieve(session.id).outcome_evaluations
    assert [(each.description, each.result) for each in found] == [("The first.", "satisfied"), ("The second.", "satisfied")]
    assert "The second." in last_user_text(agent_requests(mock)[1])


def test_interrupt_and_redefine_in_one_request(client, make, mock) -> None:
    gate = mock.gate()
    grader(mock, "satisfied")
    mock.rules({"times": 1, "answer": [{"start": True}, {"gate": gate}, {"text": "never"}]})
    mock.answer("the other thing")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define("The first."))
        mock.wait_blocked(gate)
        sent = make.send(session, {"type": "user.interrupt"}, define("The second.")).data
        assert [event.type for event in sent] == ["user.interrupt", "user.define_outcome"]
        assert sent[1].processed_at is not None
        tail.wait(lambda event: event["type"] == END and event["result"] == "satisfied")
        tail.wait_idle("end_turn", count=2)
    mock.release(gate)
    found = client.beta.sessions.retrieve(session.id).outcome_evaluations
    assert [(each.description, each.result) for each in found] == [("The first.", "interrupted"), ("The second.", "satisfied")]
    assert ends(listed(client, session)) == ["interrupted", "satisfied"]


def test_defined_while_the_session_runs(client, make, mock) -> None:
    gate = mock.gate()
    grader(mock, "satisfied")
    call = {"tool": {"name": "bash", "input": {"command": "echo called"}}}
    mock.rules({"when": {"turn": 0}, "answer": [{"start": True}, {"gate": gate}, call]})
    mock.answer("Both done.")
    session = make.session(tools=[toolset()])
    with open_sdk(client, session.id) as tail:
        make.say(session, "Say hello.")
        mock.wait_blocked(gate)
        (defined,) = make.send(session, define()).data
        assert defined.processed_at is not None
        assert evaluation(client, session).result == "pending"
        mock.release(gate)
        tail.wait_idle("end_turn", timeout=90)
    events = listed(client, session)
    assert ends(events) == ["satisfied"] and shape(events)[-3:] == IDLE
    assert [event["type"] for event in events].count("session.status_idle") == 1
    # It stands where the model has first seen it: behind the result of the call that was under way.
    first, second = agent_requests(mock)[:2]
    assert "Write the report." not in str(first["messages"])
    blocks = second["messages"][-1]["content"]
    assert [block["type"] for block in blocks] == ["tool_result", "text"] and blocks[1]["text"].startswith("Write the report.")


def test_steering_while_an_outcome_is_active(client, make, mock) -> None:
    grader(mock, "needs_revision", "satisfied")
    gate = mock.gate()
    mock.rules({"when": {"turn": 0}, "answer": [{"start": True}, {"gate": gate}, {"text": "first"}]})
    mock.answer("second", turn=1)
    mock.answer("third", turn=2)
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define())
        mock.wait_blocked(gate)
        make.say(session, "In blue, please.")
        mock.release(gate)
        tail.wait_idle("end_turn")
    events = listed(client, session)
    # The message is answered before the work is judged.
    assert shape(events) == ["user.define_outcome", *BEGIN, *SAYS, "user.message", *SAYS, START, END, *SAYS, START, END, *IDLE]


def test_grading_waits_for_the_client(client, make, mock) -> None:
    grader(mock, "satisfied")
    mock.answer({"tool": {"name": "lookup", "input": {}}}, turn=0)
    mock.answer("found")
    session = make.session(tools=[custom()])
    with open_sdk(client, session.id) as tail:
        make.send(session, define())
        idle = tail.wait_idle("requires_action")
        assert evaluation(client, session).result == "running"
        with pytest.raises(anthropic.BadRequestError, match="waiting on responses to events"):
            make.send(session, define("Another."))
        (call,) = idle["stop_reason"]["event_ids"]
        make.send(session, {"type": "user.custom_tool_result", "custom_tool_use_id": call, "content": [{"type": "text", "text": "42"}]})
        tail.wait_idle("end_turn")
    assert ends(listed(client, session)) == ["satisfied"]


def test_initial_events_and_a_rubric_from_a_file(client, make, mock) -> None:
    gate = mock.gate()
    grader(mock, "satisfied")
    mock.rules({"answer": [{"start": True}, {"gate": gate}, {"text": "done"}]})
    rubric = client.beta.files.upload(file=("rubric.md", "\ufeff- Has a title\n- Über alles\n".encode(), "text/markdown"))
    outcome = define(rubric={"type": "file", "file_id": rubric.id})
    message = {"type": "user.message", "content": [{"type": "text", "text": "Be quick."}]}
    session = make.session(initial_events=[message, outcome])
    client.beta.files.delete(rubric.id)
    assert session.status == "running" and [each.description for each in session.outcome_evaluations] == ["Write the report."]
    mock.wait_blocked(gate)
    with open_sdk(client, session.id) as tail:
        mock.release(gate)
        tail.wait_idle("end_turn")
    events = listed(client, session)
    (defined,) = [event for event in events if event["type"] == "user.define_outcome"]
    assert defined["rubric"] == {"type": "text", "content": "- Has a title\n- Über alles\n"} and defined["max_iterations"] == 3
    assert ends(events) == ["satisfied"]
    (asked,) = agent_requests(mock)
    assert [block["text"].split("\n")[0] for block in asked["messages"][0]["content"]] == ["Be quick.", "Write the report."]
    assert "Über alles" in str(gradings(mock)[0][0]["messages"][0])


def test_initial_events_are_all_or_nothing(client, make) -> None:
    agent = make.agent()
    missing = define(rubric={"type": "file", "file_id": f"file_01{'1' * 22}"})
    binary = client.beta.files.upload(file=("r.bin", b"\xff\xfe\x00", "application/octet-stream"))
    long = client.beta.files.upload(file=("r.txt", b"x" * 262_145, "text/plain"))
    message = {"type": "user.message", "content": [{"type": "text", "text": "hi"}]}
    for events, fragment in [
        ([message, missing], r"initial_events\[1\]: rubric.file_id: there is no file"),
        ([define(rubric={"type": "file", "file_id": binary.id})], "is not a text"),
        ([define(rubric={"type": "file", "file_id": long.id})], "must have 1 to 262144 characters"),
        ([define(), message, define()], r"initial_events\[2\]: only one outcome may be defined"),
        ([{"type": "user.define_outcome", "description": "d"}], "missing field `rubric`"),
        ([define(max_iterations=0)], "max_iterations: must be 1 to 20"),
        ([define(description="")], "description: must have 1"),
        ([{"type": "system.message", "content": [{"type": "text", "text": "s"}]}], "can only be created with"),
        ([message] * 51, "at most 50 entries"),
    ]:
        with pytest.raises(anthropic.BadRequestError, match=fragment):
            make.session(agent, initial_events=events)
    assert not list(client.beta.sessions.list(agent_id=agent.id))


def test_heartbeats(client, make, mock) -> None:
    gate = mock.gate()
    grader(mock, [{"start": True}, {"gate": gate}, gives("satisfied")])
    mock.answer("done")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        (defined,) = make.send(session, define()).data
        ongoing = tail.wait_type(ONGOING)
        assert set(ongoing) == {"type", "id", "processed_at", "outcome_id", "iteration"}
        assert (ongoing["outcome_id"], ongoing["iteration"]) == (defined.outcome_id, 0)
        mock.release(gate)
        tail.wait_idle("end_turn")
    assert ends(listed(client, session)) == ["satisfied"]


def test_a_grader_that_fails_for_good(client, make, mock) -> None:
    grader(mock, [{"error": {"status": 400, "message": "no"}}], "satisfied")
    mock.answer("done")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define())
        tail.wait_idle("retries_exhausted")
        found = evaluation(client, session)
        assert (found.result, found.iteration, found.completed_at) == ("running", 0, None)
        make.say(session, "Once more.")
        tail.wait_idle("end_turn")
    events = listed(client, session)
    assert [event["iteration"] for event in evaluations(events)] == [0, 0, 0]
    assert ends(events) == ["satisfied"] and evaluation(client, session).result == "satisfied"


def test_a_grader_is_asked_again(client, make, mock) -> None:
    busy = [{"error": {"status": 529, "type": "overloaded_error", "retry_after_ms": 1}}]
    grader(mock, busy, "satisfied")
    mock.answer("done")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, define())
        tail.wait_idle("end_turn")
    events = listed(client, session)
    assert ends(events) == ["satisfied"] and len(evaluations(events)) == 2
    assert "session.error(model_overloaded_error, retrying)" in shape(events)
    # It goes on from where it was.
    assert len(gradings(mock)) == 1
