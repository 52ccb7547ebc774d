"""The order checker: one reading of the event log's grammar, applied to every log that any test makes.

`check(events)` takes what `GET /v1/sessions/{id}/events` lists, oldest first, as plain dictionaries, and returns
the violations as text, none for a legal log. Of a session with child threads it knows what the session's view shows
of them: each comes, runs, rests and ends in order, and the session rests when none of them works.

`check_stream(records)` takes what one connection saw and also checks the two forms of queued inputs, and previews.
`dedupe(records)` gives the log that a stream implies, to be compared with the list.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Iterable

Event = dict[str, Any]

INBOUND = {
    "user.message",
    "user.interrupt",
    "user.tool_confirmation",
    "user.custom_tool_result",
    "user.define_outcome",
    "user.tool_result",
    "system.message",
}
QUEUEABLE = {"user.message", "user.interrupt", "user.tool_confirmation", "system.message"}
CALLS = {"agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use"}
MESSAGES = {
    "agent.thread_message_sent": "to_session_thread_id",
    "agent.thread_message_received": "from_session_thread_id",
}
RESULTS = {"agent.tool_result": "tool_use_id", "agent.mcp_tool_result": "mcp_tool_use_id"}
OUTPUT = CALLS | {"agent.message", "agent.thinking"}
THREAD_STATUS = {
    "session.thread_status_running",
    "session.thread_status_idle",
    "session.thread_status_rescheduled",
    "session.thread_status_terminated",
}
SESSION_STATUS = {
    "session.status_running",
    "session.status_idle",
    "session.status_rescheduled",
    "session.status_terminated",
}
OTHER = {
    "agent.thread_context_compacted",
    "agent.thread_message_received",
    "agent.thread_message_sent",
    "session.error",
    "session.updated",
    "session.usage",
    "session.thread_created",
    "span.model_request_start",
    "span.model_request_end",
    "span.outcome_evaluation_start",
    "span.outcome_evaluation_ongoing",
    "span.outcome_evaluation_end",
    "workflow_run.created",
    "workflow_run.status_running",
    "workflow_run.status_idle",
    "workflow_run.status_ended",
    "workflow_run.error",
    "workflow_run.phase_started",
    "workflow_run.phase_ended",
}
PERSISTED = INBOUND | OUTPUT | set(RESULTS) | THREAD_STATUS | SESSION_STATUS | OTHER
PREVIEWS = {"event_start", "event_delta"}
STREAM_ONLY = PREVIEWS | {"session.deleted"}

EVALUATION = {
    "span.outcome_evaluation_start",
    "span.outcome_evaluation_ongoing",
    "span.outcome_evaluation_end",
}
# Of evaluations; all but the first end their outcome.
RESULTS_OF_OUTCOMES = {"needs_revision", "satisfied", "max_iterations_reached", "failed", "interrupted"}

STOP_REASONS = {"end_turn", "requires_action", "retries_exhausted", "budget_reached", "refusal"}
ERROR_TYPES = {
    "unknown_error",
    "model_overloaded_error",
    "model_rate_limited_error",
    "model_request_failed_error",
    "mcp_connection_failed_error",
    "mcp_authentication_failed_error",
    "billing_error",
    "credential_host_unreachable_error",
    "tool_use_limit_reached_error",
    "compaction_limit_reached_error",
    "repository_authentication_error",
    "repository_forbidden_error",
    "repository_not_found_error",
    "repository_checkout_error",
    "repository_clone_error",
}
# These are reported and the turn goes on.
HARMLESS_ERRORS = {name for name in ERROR_TYPES if name.startswith(("mcp_", "repository_", "credential_"))}

USAGE_FIELDS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def short(event: Event) -> str:
    """A name for an event that says what a reader of a sequence wants to know."""
    name = event["type"]
    if name in ("session.status_idle", "session.thread_status_idle"):
        return f"{name}({event['stop_reason']['type']})"
    if name == "session.error":
        return f"{name}({event['error']['type']}, {event['error']['retry_status']['type']})"
    if name in ("agent.tool_use", "agent.custom_tool_use"):
        permission = event.get("evaluated_permission")
        return f"{name}({event['name']}{', ' + permission if permission not in (None, 'allow') else ''})"
    if name in RESULTS:
        return f"{name}({'error' if event.get('is_error') else 'ok'})"
    if name == "span.model_request_end" and event.get("is_error"):
        return f"{name}(error)"
    return name


def shape(events: Iterable[Event]) -> list[str]:
    return [short(event) for event in events]


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


class _Checker:
    def __init__(self) -> None:
        self.violations: list[str] = []
        self.at = "start"
        self.status = "idle"
        self.primary: str | None = None
        self.span: str | None = None
        self.last_time: datetime | None = None
        self.ids: set[str] = set()
        # Calls without a result: id -> "run" (the server's), "ask" (a person's), "custom" (the client's)
        self.open: dict[str, str] = {}
        self.seen_calls: dict[str, Event] = {}
        self.denied: set[str] = set()
        self.confirmed: set[str] = set()
        self.finished: set[str] = set()
        self.since_output = False
        self.interrupted = False
        self.answered = False
        # What the threads do, the primary one included, and whose the calls of children are.
        self.threads: dict[str, str] = {}
        self.owners: dict[str, str] = {}
        # The open evaluation, and outcomes by id: the iteration they are at, None when they are over.
        self.evaluation: Event | None = None
        self.outcomes: dict[str, int | None] = {}

    def bad(self, text: str) -> None:
        self.violations.append(f"{self.at}: {text}")

    # What every event must be, wherever it stands.
    def form(self, event: Event) -> None:
        name = event["type"]
        if name not in PERSISTED:
            self.bad("is not a type that may be listed")
        identity = event.get("id")
        if not isinstance(identity, str) or not identity.startswith("sevt_"):
            self.bad(f"has the id {identity!r}")
        elif identity in self.ids:
            self.bad("appears twice")
        self.ids.add(str(identity))
        if "session_id" in event or "created_at" in event:
            self.bad("carries a key that events do not have")
        processed = event.get("processed_at")
        if processed is None:
            if name not in QUEUEABLE:
                self.bad("has no processed_at")
        else:
            time = parse_time(processed)
            if self.last_time is not None and time < self.last_time:
                self.bad(f"was processed at {processed}, before its predecessor")
            self.last_time = time

    def thread(self, event: Event) -> None:
        thread = event.get("session_thread_id")
        name = event["type"]
        if name in THREAD_STATUS:
            if not isinstance(thread, str) or not thread.startswith("sthr_"):
                self.bad("names no thread")
                return
            if not isinstance(event.get("agent_name"), str):
                self.bad("has no agent_name")
            if self.primary is None:
                self.primary = thread
            self.thread_status(name.removeprefix("session.thread_status_"), thread)
        elif name == "session.thread_created":
            if not isinstance(thread, str) or thread in self.threads:
                self.bad(f"creates {thread!r}")
            elif self.primary is None:
                self.bad("comes before the primary thread has run")
            if not isinstance(event.get("agent_name"), str) or "workflow_run_id" not in event:
                self.bad("lacks agent_name or workflow_run_id")
            self.threads[str(thread)] = "idle"
        elif name in MESSAGES:
            other = event.get(MESSAGES[name])
            if self.threads.get(str(other)) in (None, "terminated") or other == self.primary:
                self.bad(f"is exchanged with {other}, which is no child at this point")
            if not event.get("content"):
                self.bad("has no content")

    def thread_status(self, status: str, thread: str) -> None:
        known = self.threads.get(thread)
        if known is None and thread != self.primary:
            self.bad("is of a thread that was not created")
        if known == "terminated":
            self.bad("follows the end of its thread")
        if status == "running" and known == "running":
            self.bad("while running already")
        if status == "rescheduled" and known != "running":
            self.bad(f"while {known}")
        self.threads[thread] = {"rescheduled": "rescheduling"}.get(status, status)

    def others_work(self, thread: str | None) -> bool:
        return any(status in ("running", "rescheduling") for each, status in self.threads.items() if each != thread)

    def child(self, event: Event, after: Event | None) -> None:
        """What the session's view shows of a child beside its status."""
        name, thread = event["type"], event["session_thread_id"]
        if name == "session.thread_status_idle":
            self.idle_form(event)
            reason = event["stop_reason"]
            own = {identity for identity in self.waiting() if self.owners.get(identity) == thread}
            if reason["type"] == "requires_action" and set(reason["event_ids"]) != own:
                self.bad(f"lists {reason['event_ids']}, waiting are {sorted(own)}")
            if reason["type"] != "requires_action":
                self.drop(thread)
        elif name == "session.thread_status_terminated":
            self.drop(thread)
            # A client may have archived it: then the session tells what it waits for now.
            self.answered = True
        elif name in CALLS:
            self.owners[event["id"]] = thread
            self.call(event)
            if event["id"] not in self.waiting():
                self.bad("is a child's call that waits for nobody")
        elif name in ("user.tool_confirmation", "user.custom_tool_result", "user.tool_result"):
            key = "custom_tool_use_id" if name == "user.custom_tool_result" else "tool_use_id"
            if self.owners.get(str(event.get(key))) != thread:
                self.bad(f"answers {event.get(key)}, which is no call of {thread}")
            self.inbound(event, [])
            # Its result is for the child's own view.
            self.open.pop(str(event.get(key)), None)
        elif name == "user.interrupt":
            self.interrupted = True

    def drop(self, thread: str) -> None:
        """Calls of a thread that nobody will answer any more."""
        for identity in [each for each, owner in self.owners.items() if owner == thread]:
            self.open.pop(identity, None)

    def is_child(self, event: Event) -> bool:
        thread = event.get("session_thread_id")
        return thread is not None and thread != self.primary

    def idle_form(self, event: Event) -> None:
        reason = event.get("stop_reason")
        if not isinstance(reason, dict) or reason.get("type") not in STOP_REASONS:
            self.bad(f"has the stop_reason {reason!r}")
            return
        if reason["type"] == "requires_action":
            ids = reason.get("event_ids")
            if not ids or len(set(ids)) != len(ids):
                self.bad(f"has event_ids {ids!r}")
        if reason["type"] != "refusal" and event.get("stop_details") is not None:
            self.bad("has stop_details without a refusal")
        if reason["type"] == "refusal" and (event.get("stop_details") or {}).get("type") != "refusal":
            self.bad(f"is a refusal with stop_details {event.get('stop_details')!r}")

    def waiting(self) -> set[str]:
        return {
            identity
            for identity, kind in self.open.items()
            if kind == "custom" or (kind == "ask" and identity not in self.confirmed)
        }

    def step(self, events: list[Event], index: int) -> None:
        event = events[index]
        name = event["type"]
        before = events[index - 1] if index else None
        after = events[index + 1] if index + 1 < len(events) else None
        self.at = f"#{index} {short(event)}"
        self.form(event)
        self.thread(event)
        if self.status == "terminated":
            self.bad("follows the end of the session")
        if name in MESSAGES or name == "session.thread_created":
            return
        if self.is_child(event):
            self.child(event, after)
            return
        many = len(self.threads) > 1
        if self.span and self.since_output and name not in OUTPUT and name != "span.model_request_end":
            self.bad("stands between the parts of one model response")

        if name == "session.status_running":
            if self.status == "running":
                self.bad("while running already")
            self.status = "running"
            self.expect(after, {"session.thread_status_running"})
        elif name == "session.thread_status_running":
            if not many:
                self.expect(before, {"session.status_running"})
        elif name == "session.status_rescheduled":
            if self.status != "running":
                self.bad(f"while {self.status}")
            self.status = "rescheduling"
            if self.span:
                self.bad("with a model request open")
            # Of several threads the last one to run may have ended while others waited.
            if not many:
                self.expect(before, {"session.error"})
                self.expect(after, {"session.thread_status_rescheduled"})
        elif name == "session.thread_status_rescheduled":
            if not many:
                self.expect(before, {"session.status_rescheduled"})
        elif name == "session.thread_status_idle":
            self.idle_form(event)
            if not self.others_work(self.primary):
                # With a message for it, or one from a child that has just come, it begins again at once.
                self.expect(after, {"session.usage", "session.thread_status_running"} if many else {"session.usage"})
        elif name == "session.usage":
            resting = {"session.thread_status_idle"}
            self.expect(before, resting | {"session.thread_status_terminated", "user.interrupt"} if many else resting)
            self.expect(after, {"session.status_idle"})
            if not isinstance(event.get("usage"), dict):
                self.bad("has no usage")
        elif name == "session.status_idle":
            self.idle_form(event)
            self.idle(events, index)
        elif name == "session.thread_status_terminated":
            pass
        elif name == "session.status_terminated":
            self.expect(before, {"session.thread_status_terminated"})
            self.status = "terminated"
        elif name == "session.error":
            self.error(event, after)
        elif name == "span.model_request_start":
            if self.span:
                self.bad("while a model request is open")
            if self.status != "running":
                self.bad(f"while {self.status}")
            if self.open:
                self.bad(f"while calls have no result: {sorted(self.open)}")
            if self.evaluation:
                self.bad("while an outcome is being evaluated")
            self.span = event["id"]
            self.since_output = False
        elif name == "span.model_request_end":
            self.span_end(event)
        elif name in OUTPUT:
            if not self.span:
                self.bad("outside a model request")
            self.since_output = True
            if name in CALLS:
                self.call(event)
        elif name in RESULTS:
            # The results of calls that an interrupt ends stand before or behind it, with nothing in between.
            following = next((each for each in events[index:] if each["type"] not in RESULTS), None)
            ended = self.interrupted or (following is not None and following["type"] == "user.interrupt")
            self.result(event, RESULTS[name], ended)
        elif name in EVALUATION:
            self.evaluate(event)
        elif name in INBOUND:
            self.inbound(event, events[index:])

    def evaluate(self, event: Event) -> None:
        name, outcome = event["type"], str(event.get("outcome_id"))
        iteration, at = event.get("iteration"), self.outcomes.get(outcome)
        if outcome not in self.outcomes:
            self.bad(f"is of {outcome}, which nobody has defined")
        elif at is None:
            self.bad(f"is of {outcome}, which is over")
        elif iteration != at:
            self.bad(f"is iteration {iteration}, not {at}")
        if self.span:
            self.bad("while a model request is open")
        if name == "span.outcome_evaluation_start":
            if self.status != "running":
                self.bad(f"while {self.status}")
            if self.evaluation:
                self.bad("while another evaluation is open")
            if self.open:
                self.bad(f"while calls have no result: {sorted(self.open)}")
            self.evaluation = event
            return
        started = self.evaluation
        if started is not None and (started["outcome_id"], started["iteration"]) != (outcome, iteration):
            self.bad(f"is of another evaluation than {started['id']}")
        if name == "span.outcome_evaluation_ongoing":
            if started is None:
                self.bad("while no evaluation is open")
            return
        result, of = event.get("result"), event.get("outcome_evaluation_start_id")
        if of != (started["id"] if started else ""):
            self.bad(f"ends {of!r}, open is {started and started['id']!r}")
        if result not in RESULTS_OF_OUTCOMES or not isinstance(event.get("explanation"), str):
            self.bad(f"has the result {result!r} and the explanation {event.get('explanation')!r}")
        if started is None and result != "interrupted":
            self.bad(f"is {result} without an evaluation")
        usage = event.get("usage") or {}
        for field in USAGE_FIELDS:
            if not isinstance(usage.get(field), int):
                self.bad(f"has no usage.{field}")
        if at is not None:
            self.outcomes[outcome] = at + 1 if result == "needs_revision" else None
        self.evaluation = None

    def expect(self, neighbour: Event | None, names: set[str]) -> None:
        if neighbour is None or neighbour["type"] not in names:
            found = "nothing" if neighbour is None else short(neighbour)
            self.bad(f"stands beside {found}, not {' or '.join(sorted(names))}")

    def idle(self, events: list[Event], index: int) -> None:
        event = events[index]
        self.expect(events[index - 1] if index else None, {"session.usage"})
        twin = events[index - 2] if index >= 2 else None
        if self.others_work(None):
            self.bad(f"while threads work: {self.threads}")
        if len(self.threads) == 1 and twin is not None and twin["type"] == "session.thread_status_idle":
            if twin.get("stop_reason") != event.get("stop_reason"):
                self.bad(f"differs from its thread: {twin.get('stop_reason')} and {event.get('stop_reason')}")
        if self.span:
            self.bad("with a model request open")
        if self.evaluation:
            # Only one that failed is left open: the outcome goes on with the next message.
            if (event.get("stop_reason") or {}).get("type") != "retries_exhausted":
                self.bad("while an outcome is being evaluated")
            self.evaluation = None
        active = [outcome for outcome, at in self.outcomes.items() if at is not None]
        if active and not self.interrupted and (event.get("stop_reason") or {}).get("type") == "end_turn":
            self.bad(f"while outcomes are to be evaluated: {active}")
        running = [identity for identity, kind in self.open.items() if identity not in self.waiting()]
        if running and self.status == "running":
            self.bad(f"while calls have no result: {running}")
        reason = event.get("stop_reason") or {}
        if reason.get("type") == "requires_action":
            if set(reason.get("event_ids") or ()) != self.waiting():
                self.bad(f"lists {reason.get('event_ids')}, waiting are {sorted(self.waiting())}")
        elif self.waiting() and reason.get("type") not in ("budget_reached",):
            self.bad(f"forgets the waiting calls {sorted(self.waiting())}")
        if self.status == "idle" and not (self.answered or self.interrupted):
            self.bad("while idle already, and nothing was answered or interrupted")
        self.status = "idle"
        self.answered = False
        self.interrupted = False

    def error(self, event: Event, after: Event | None) -> None:
        error = event.get("error") or {}
        status = (error.get("retry_status") or {}).get("type")
        if error.get("type") not in ERROR_TYPES or not isinstance(error.get("message"), str):
            self.bad(f"carries {error!r}")
        if status not in ("retrying", "exhausted", "terminal"):
            self.bad(f"has the retry_status {status!r}")
        if error.get("type") in HARMLESS_ERRORS or len(self.threads) > 1:
            # With several threads it does not say whose it is.
            return
        if self.span:
            self.bad("with a model request open")
        if status == "retrying":
            self.expect(after, {"session.status_rescheduled"})
        elif status == "exhausted":
            # Inputs that were queued are flushed first.
            self.expect(after, {"session.thread_status_idle", "user.message", "user.interrupt", "system.message"})
        elif status == "terminal":
            self.expect(after, {"session.thread_status_terminated"})

    def span_end(self, event: Event) -> None:
        if event.get("model_request_start_id") != self.span:
            self.bad(f"ends {event.get('model_request_start_id')}, open is {self.span}")
        usage = event.get("model_usage") or {}
        for field in USAGE_FIELDS:
            if not isinstance(usage.get(field), int):
                self.bad(f"has no model_usage.{field}")
        if event.get("is_error") and self.since_output:
            self.bad("failed, but its output was kept")
        self.span = None
        self.since_output = False

    def call(self, event: Event) -> None:
        identity = event["id"]
        self.seen_calls[identity] = event
        if not isinstance(event.get("input"), dict):
            self.bad("has no input object")
        if self.primary is not None and event.get("session_thread_id") == self.primary:
            self.bad("names the primary thread")
        permission = event.get("evaluated_permission")
        if event["type"] == "agent.custom_tool_use":
            if permission is not None:
                self.bad("custom calls have no permission")
            self.open[identity] = "custom"
            return
        if permission not in ("allow", "ask", "deny"):
            self.bad(f"has the permission {permission!r}")
        if permission == "deny":
            self.denied.add(identity)
        self.open[identity] = "ask" if permission == "ask" else "run"

    def result(self, event: Event, key: str, ended: bool) -> None:
        identity = event.get(key)
        call = self.seen_calls.get(str(identity))
        if call is None:
            self.bad(f"answers {identity}, which is no call of this log")
            return
        if (call["type"] == "agent.mcp_tool_use") != (event["type"] == "agent.mcp_tool_result"):
            self.bad("is of the wrong kind for its call")
        if self.span:
            self.bad("while a model request is open")
        if identity in self.finished:
            self.bad("is the second result of its call")
        if identity in self.denied and not event.get("is_error"):
            self.bad("is a success of a denied call")
        if identity in self.waiting() and not (ended and event.get("is_error")):
            self.bad("comes before the permission")
        self.finished.add(str(identity))
        self.open.pop(str(identity), None)

    def inbound(self, event: Event, rest: list[Event]) -> None:
        name = event["type"]
        if event.get("processed_at") is None:
            return
        if name == "user.interrupt":
            self.interrupted = True
            # The calls that wait for a client end here: custom ones without an event of their own.
            for identity in [identity for identity, kind in self.open.items() if kind == "custom"]:
                self.open.pop(identity)
                self.finished.add(identity)
        elif name == "user.tool_confirmation":
            identity = event.get("tool_use_id")
            if self.open.get(str(identity)) != "ask" or identity in self.confirmed:
                self.bad(f"confirms {identity}, which does not wait for it")
            self.confirmed.add(str(identity))
            if event.get("result") == "deny":
                self.denied.add(str(identity))
            self.answered = True
        elif name == "user.custom_tool_result":
            identity = str(event.get("custom_tool_use_id"))
            if self.open.get(identity) != "custom":
                self.bad(f"answers {identity}, which does not wait for it")
            self.open.pop(identity, None)
            self.finished.add(identity)
            self.answered = True
        elif name == "user.define_outcome":
            identity = str(event.get("outcome_id"))
            if not identity.startswith("outc_") or identity in self.outcomes:
                self.bad(f"defines {identity!r}")
            if (event.get("rubric") or {}).get("type") not in ("text", "file") or not isinstance(event.get("max_iterations"), int):
                self.bad(f"has the rubric {event.get('rubric')!r} and max_iterations {event.get('max_iterations')!r}")
            self.outcomes[identity] = 0
        elif name == "user.message":
            # What was still queued when the session was archived is put away with it.
            following = next((each for each in rest if each["type"] not in INBOUND), None)
            archived = following is not None and following["type"] == "session.thread_status_terminated"
            if self.status == "idle" and not archived:
                self.bad("was processed while idle")
            if self.span:
                self.bad("was processed while a model request is open")

    def end(self, complete: bool) -> None:
        self.at = "end"
        if not complete:
            return
        if self.span:
            self.bad("a model request was never closed")
        if self.evaluation:
            self.bad("an evaluation was never closed")
        if self.status in ("running", "rescheduling"):
            self.bad(f"the session is still {self.status}")
        left = set(self.open) - self.waiting()
        if left and self.status != "terminated":
            self.bad(f"calls never got a result: {sorted(left)}")


def check(events: list[Event], *, complete: bool = True) -> list[str]:
    """The violations of a listed log, oldest event first. `complete`: the session is at rest."""
    checker = _Checker()
    queued = False
    listed = []
    for event in events:
        # What is still queued stands last and is no part of the history yet.
        if event.get("processed_at") is None and event["type"] in QUEUEABLE:
            queued = True
            checker.at = f"queued {event['type']}"
            checker.form(event)
            continue
        if queued:
            checker.at = short(event)
            checker.bad("is listed after a queued event")
        listed.append(event)
    for index in range(len(listed)):
        checker.step(listed, index)
    checker.end(complete)
    if queued and complete and checker.status == "idle":
        checker.bad("inputs stay queued in an idle session")
    return checker.violations


def check_stream(records: list[Event], *, previews: set[str] = frozenset()) -> list[str]:
    """The violations in what one connection saw: both forms of an input once each and in order, and the previews."""
    violations: list[str] = []
    forms: dict[str, list[bool]] = {}
    finished: set[str] = set()
    started: dict[str, str] = {}
    texts: dict[tuple[str, int], str] = {}
    for index, event in enumerate(records):
        name = event["type"]
        at = f"#{index} {name}"
        if name == "event_start":
            identity, kind = event["event"]["id"], event["event"]["type"]
            if kind not in previews:
                violations.append(f"{at}: previews {kind}, which was not asked for")
            if identity in started:
                violations.append(f"{at}: a second start of {identity}")
            if identity in finished:
                violations.append(f"{at}: the start follows the event")
            started[identity] = kind
        elif name == "event_delta":
            identity, delta = event["event_id"], event["delta"]
            if started.get(identity) != "agent.message":
                violations.append(f"{at}: a delta without its start")
            if identity in finished:
                violations.append(f"{at}: the delta follows the event")
            position = delta["index"]
            known = [key for (owner, key) in texts if owner == identity]
            if position not in known and position != len(known):
                violations.append(f"{at}: index {position} leaves a gap after {sorted(known)}")
            texts[identity, position] = texts.get((identity, position), "") + delta["content"]["text"]
        elif name == "session.deleted":
            if index != len(records) - 1:
                violations.append(f"{at}: is not the last event")
        else:
            identity = event["id"]
            processed = event.get("processed_at") is not None
            seen = forms.setdefault(identity, [])
            if seen and (seen[-1] or not processed or name not in QUEUEABLE):
                violations.append(f"{at}: {identity} is shown twice in the same form, or backwards")
            seen.append(processed)
            finished.add(identity)
            if identity in started and started[identity] != name:
                violations.append(f"{at}: was previewed as {started[identity]}")
            for (owner, position), text in texts.items():
                if owner != identity:
                    continue
                content = event.get("content") or []
                whole = content[position]["text"] if position < len(content) else ""
                if not whole.startswith(text):
                    violations.append(f"{at}: its preview {text!r} is no prefix of {whole!r}")
    return violations


def dedupe(records: Iterable[Event]) -> list[Event]:
    """The log that a stream implies: no previews, and the processed form in place of the queued one."""
    kept: dict[str, Event] = {}
    for event in records:
        if event["type"] in STREAM_ONLY:
            continue
        # A later form takes the position of its own arrival, as the list sorts by processing.
        kept.pop(event["id"], None)
        kept[event["id"]] = event
    done = [event for event in kept.values() if event.get("processed_at") is not None]
    return done + [event for event in kept.values() if event.get("processed_at") is None]


if __name__ == "__main__":
    # For suites in other languages: a log as JSON on standard input, its violations on standard output.
    import json
    import sys

    found = check(json.load(sys.stdin), complete="--incomplete" not in sys.argv)
    print("\n".join(found))
    sys.exit(1 if found else 0)
