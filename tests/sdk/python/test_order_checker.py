"""The checker itself: legal logs pass, and each rule has a log that breaks it. A checker that finds nothing proves nothing."""

from __future__ import annotations

import copy
import itertools

import pytest

from support.order import Event, check, check_stream, dedupe

USAGE = {
    "input_tokens": 1,
    "output_tokens": 1,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
}
THREAD = {"session_thread_id": "sthr_1", "agent_name": "a"}


class Log:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.numbers = itertools.count(1)

    def add(self, name: str, /, **fields: object) -> Event:
        number = next(self.numbers)
        event = {"type": name, "id": f"sevt_{number}", "processed_at": f"2026-11-20T10:00:00.{number:06}Z", **fields}
        self.events.append(event)
        return event

    def start(self) -> "Log":
        self.add("session.status_running")
        self.add("session.thread_status_running", **THREAD)
        return self

    def message(self) -> "Log":
        self.add("user.message", content=[{"type": "text", "text": "hi"}])
        return self

    def request(self, *calls: tuple[str, dict[str, object]]) -> list[str]:
        start = self.add("span.model_request_start")
        self.add("agent.message", content=[{"type": "text", "text": "ok"}])
        ids = [self.add(name, name="bash", input={}, **fields)["id"] for name, fields in calls]
        self.add("span.model_request_end", model_request_start_id=start["id"], is_error=False, model_usage=USAGE)
        return ids

    def result(self, call: str, is_error: bool = False) -> None:
        self.add("agent.tool_result", tool_use_id=call, content=[], is_error=is_error)

    def idle(self, reason: str = "end_turn", ids: list[str] | None = None) -> "Log":
        stop: dict[str, object] = {"type": reason}
        if ids is not None:
            stop["event_ids"] = ids
        self.add("session.thread_status_idle", **THREAD, stop_reason=stop, stop_details=None)
        self.add("session.usage", usage={}, budget=None)
        self.add("session.status_idle", stop_reason=stop, stop_details=None)
        return self


ALLOW = ("agent.tool_use", {"evaluated_permission": "allow"})
ASK = ("agent.tool_use", {"evaluated_permission": "ask"})


def plain() -> list[Event]:
    log = Log().start().message()
    log.request()
    return log.idle().events


def tools() -> list[Event]:
    log = Log().start().message()
    first, second = log.request(ALLOW, ALLOW)
    log.result(second)
    log.result(first)
    log.request()
    return log.idle().events


def asked() -> list[Event]:
    log = Log().start().message()
    first, second = log.request(ASK, ASK)
    log.idle("requires_action", [first, second])
    log.add("user.tool_confirmation", tool_use_id=first, result="allow")
    log.idle("requires_action", [second])
    log.add("user.tool_confirmation", tool_use_id=second, result="deny")
    log.start()
    log.result(first)
    log.result(second, is_error=True)
    log.request()
    return log.idle().events


def retried() -> list[Event]:
    log = Log().start().message()
    start = log.add("span.model_request_start")
    log.add("span.model_request_end", model_request_start_id=start["id"], is_error=True, model_usage=USAGE)
    error = {"type": "model_overloaded_error", "message": "m", "retry_status": {"type": "retrying"}}
    log.add("session.error", error=error)
    log.add("session.status_rescheduled")
    log.add("session.thread_status_rescheduled", **THREAD)
    log.start()
    log.request()
    return log.idle().events


def interrupted_custom() -> list[Event]:
    log = Log().start().message()
    (call,) = log.request(("agent.custom_tool_use", {}))
    log.idle("requires_action", [call])
    log.add("user.interrupt")
    return log.idle().events


def interrupted_running() -> list[Event]:
    log = Log().start().message()
    running, waiting = log.request(ALLOW, ASK)
    log.result(running, is_error=True)
    log.result(waiting, is_error=True)
    log.add("user.interrupt")
    return log.idle().events


def archived_with_queued() -> list[Event]:
    log = Log().start().message()
    (waiting,) = log.request(ASK)
    log.idle("requires_action", [waiting]).message()
    log.add("session.thread_status_terminated", **THREAD)
    log.add("session.status_terminated")
    return log.events


def outcome() -> list[Event]:
    log = Log()
    rubric = {"type": "text", "content": "r"}
    log.add("user.define_outcome", outcome_id="outc_1", description="d", rubric=rubric, max_iterations=3)
    log.start()
    for iteration, result in enumerate(("needs_revision", "satisfied")):
        log.request()
        of = {"outcome_id": "outc_1", "iteration": iteration}
        start = log.add("span.outcome_evaluation_start", **of)
        log.add("span.outcome_evaluation_ongoing", **of)
        end = {"outcome_evaluation_start_id": start["id"], "result": result, "explanation": "e", "usage": USAGE}
        log.add("span.outcome_evaluation_end", **of, **end)
    return log.idle().events


def interrupted_outcome() -> list[Event]:
    log = Log()
    rubric = {"type": "text", "content": "r"}
    log.add("user.define_outcome", outcome_id="outc_1", description="d", rubric=rubric, max_iterations=3)
    log.start()
    start = log.add("span.model_request_start")
    log.add("span.model_request_end", model_request_start_id=start["id"], is_error=True, model_usage=USAGE)
    log.add("user.interrupt")
    end = {"outcome_evaluation_start_id": "", "result": "interrupted", "explanation": "", "usage": USAGE}
    log.add("span.outcome_evaluation_end", outcome_id="outc_1", iteration=0, **end)
    return log.idle().events


LEGAL = [plain, tools, asked, retried, interrupted_custom, interrupted_running, archived_with_queued, outcome, interrupted_outcome]


@pytest.mark.parametrize("log", LEGAL)
def test_legal_logs_pass(log) -> None:
    assert check(log()) == []


def without(events: list[Event], name: str, which: int = 0) -> list[Event]:
    at = [index for index, event in enumerate(events) if event["type"] == name][which]
    return events[:at] + events[at + 1 :]


def swapped(events: list[Event], at: int) -> list[Event]:
    """The events at two neighbouring positions change places, their times stay in order."""
    events = copy.deepcopy(events)
    first, second = events[at], events[at + 1]
    first["processed_at"], second["processed_at"] = second["processed_at"], first["processed_at"]
    events[at], events[at + 1] = second, first
    return events


@pytest.mark.parametrize("log", [plain, tools, asked, retried])
@pytest.mark.parametrize(
    "name",
    [
        "session.status_running",
        "session.thread_status_running",
        "session.thread_status_idle",
        "session.usage",
        "session.status_idle",
        "span.model_request_start",
        "span.model_request_end",
    ],
)
def test_a_missing_event_is_seen(log, name: str) -> None:
    assert check(without(log(), name)), f"{log.__name__} without {name} passes"


@pytest.mark.parametrize("name", ["user.define_outcome", "span.outcome_evaluation_start", "span.outcome_evaluation_end"])
def test_a_missing_part_of_an_outcome_is_seen(name: str) -> None:
    assert check(without(outcome(), name))
    assert check(without(outcome(), name, -1))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda start, ongoing, end: end.update(outcome_evaluation_start_id=""),
        lambda start, ongoing, end: end.update(result="interrupted"),
        lambda start, ongoing, end: end.update(result="excellent"),
        lambda start, ongoing, end: end.update(explanation=None),
        lambda start, ongoing, end: end.update(usage={"input_tokens": 1}),
        lambda start, ongoing, end: end.update(iteration=1),
        lambda start, ongoing, end: start.update(iteration=1),
        lambda start, ongoing, end: start.update(outcome_id="outc_2"),
        lambda start, ongoing, end: ongoing.update(iteration=1),
        lambda start, ongoing, end: ongoing.update(outcome_id="outc_2"),
    ],
)
def test_wrong_fields_of_an_evaluation_are_seen(spoil) -> None:
    events = outcome()
    spoil(*[event for event in events if event["type"].startswith("span.outcome")][:3])
    assert check(events)


def test_a_missing_result_is_seen() -> None:
    assert check(without(tools(), "agent.tool_result"))


def test_a_missing_confirmation_is_seen() -> None:
    assert check(without(asked(), "user.tool_confirmation"))


def test_missing_rescheduling_is_seen() -> None:
    assert check(without(retried(), "session.error"))
    assert check(without(retried(), "session.status_rescheduled"))
    assert check(without(retried(), "session.thread_status_rescheduled"))


@pytest.mark.parametrize("log", [plain, tools, asked, retried, outcome])
def test_most_swaps_are_seen(log) -> None:
    events = log()
    # These pairs may stand either way: results in order of completion, parts of one response in the model's order.
    free = {
        ("agent.tool_result", "agent.tool_result"),
        ("agent.tool_use", "agent.tool_use"),
        ("agent.message", "agent.tool_use"),
    }
    for at in range(len(events) - 1):
        pair = (events[at]["type"], events[at + 1]["type"])
        if pair not in free:
            assert check(swapped(events, at)), f"{pair} swapped passes"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda events: events.append(events[0]),
        lambda events: events[0].update(processed_at=None),
        lambda events: events[0].update(processed_at="2027-01-01T00:00:00Z"),
        lambda events: events[0].update(type="session.deleted"),
        lambda events: events[0].update(id="evt_1"),
        lambda events: events[-1].update(stop_reason={"type": "interrupted"}),
        lambda events: events[-1].update(stop_reason={"type": "refusal"}),
        lambda events: events[-1].update(stop_reason={"type": "requires_action", "event_ids": ["sevt_9"]}),
        lambda events: events[-1].update(stop_details={"type": "refusal"}),
        lambda events: events[5].update(model_request_start_id="sevt_1"),
        lambda events: events[5].update(model_usage={"input_tokens": 1}),
        lambda events: events[1].pop("agent_name"),
    ],
)
def test_wrong_fields_are_seen(spoil) -> None:
    events = plain()
    spoil(events)
    assert check(events)


def test_output_outside_a_request_and_a_foreign_event_inside_are_seen() -> None:
    log = Log().start().message()
    log.add("agent.message", content=[])
    log.request()
    assert check(log.idle().events)
    events = plain()
    inside = [index for index, event in enumerate(events) if event["type"] == "agent.message"][0]
    stranger = {"type": "session.updated", "id": "sevt_x", "processed_at": events[inside]["processed_at"]}
    assert check(events[: inside + 1] + [stranger] + events[inside + 1 :])


def test_a_double_result_and_a_result_before_permission_are_seen() -> None:
    events = tools()
    double = copy.deepcopy(next(event for event in events if event["type"] == "agent.tool_result"))
    at = [index for index, event in enumerate(events) if event["type"] == "agent.tool_result"][-1]
    double.update(id="sevt_double", processed_at=events[at]["processed_at"])
    assert check(events[: at + 1] + [double] + events[at + 1 :])
    log = Log().start().message()
    (call,) = log.request(ASK)
    log.result(call)
    log.request()
    assert check(log.idle().events)


def test_a_message_processed_between_turns_is_seen() -> None:
    events = plain()
    message = {"type": "user.message", "id": "sevt_x", "processed_at": events[-1]["processed_at"], "content": []}
    assert check([*events, message])


def test_an_end_while_something_is_open_is_seen() -> None:
    events = plain()
    assert check(events[:-3])
    assert check(events[:-3], complete=False) == []
    assert check(events[:4])


def test_stream_forms_and_previews() -> None:
    queued = {"type": "user.message", "id": "sevt_1", "processed_at": None, "content": []}
    done = {**queued, "processed_at": "2026-11-20T10:00:00Z"}
    assert check_stream([queued, done]) == []
    assert check_stream([done, queued])
    assert check_stream([queued, queued])
    assert check_stream([done, done])
    assert dedupe([queued, {"type": "session.status_running", "id": "sevt_2", "processed_at": "t"}, done])[-1] == done

    def delta(text: str, index: int = 0) -> Event:
        content = {"type": "text", "text": text}
        return {"type": "event_delta", "event_id": "sevt_m", "delta": {"type": "content_delta", "index": index, "content": content}}

    start = {"type": "event_start", "event": {"type": "agent.message", "id": "sevt_m"}}
    final = {"type": "agent.message", "id": "sevt_m", "processed_at": "t", "content": [{"type": "text", "text": "hello"}]}
    asked_for = {"agent.message"}
    assert check_stream([start, delta("hel"), delta("lo"), final], previews=asked_for) == []
    assert check_stream([start, delta("hel"), final], previews=asked_for) == []
    assert check_stream([start, delta("hel"), final])
    assert check_stream([delta("hel"), final], previews=asked_for)
    assert check_stream([start, start, final], previews=asked_for)
    assert check_stream([start, delta("lo"), final], previews=asked_for)
    assert check_stream([start, final, delta("hel")], previews=asked_for)
    assert check_stream([start, delta("hel", 1), final], previews=asked_for)
