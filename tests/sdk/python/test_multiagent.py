"""Agents that direct others, and their threads, through the official client."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from conftest import custom, toolset
from support import order
from support.registry import covers
from support.tail import Tail

INTERRUPTED = "Tool execution was interrupted before completion. Please retry."


def start(name: str, message: str, **more: Any) -> dict:
    return {"tool": {"name": "create_agent", "input": {"agent_name": name, "message": message, **more}}}


def roster(*agents: Any) -> dict:
    entries = [each if isinstance(each, dict) else each.id for each in agents]
    return {"type": "coordinator", "agents": entries}


def of(name: str, **fields: Any):
    """Events of a type with these fields."""
    return lambda event: event["type"] == name and all(event.get(key) == value for key, value in fields.items())


def open_thread(client: Any, session: Any, thread: str, **options: Any) -> Tail:
    stream = client.beta.sessions.threads.events.stream(thread, session_id=session.id, **options)
    return Tail(stream, stream.response, name=f"stream of {thread}")


def open_session(client: Any, session: Any, **options: Any) -> Tail:
    stream = client.beta.sessions.events.stream(session.id, **options)
    return Tail(stream, stream.response, name="session stream")


def children(client: Any, session: Any, **options: Any) -> list[Any]:
    return [each for each in client.beta.sessions.threads.list(session.id, **options) if each.parent_thread_id]


def events(client: Any, session: Any, thread: Any) -> list[dict]:
    found = client.beta.sessions.threads.events.list(getattr(thread, "id", thread), session_id=session.id)
    return [event.to_dict(mode="json") for event in found]


@covers(
    "beta.agents.create",
    "beta.sessions.threads.list",
    "beta.sessions.threads.retrieve",
    "beta.sessions.threads.events.list",
)
def test_three_specialists_work_at_the_same_time(client, make, mock) -> None:
    names = ["Reader", "Writer", "Tester"]
    gates = {name: mock.gate(name.lower()) for name in names}
    specialists = [make.agent(name=name, system=f"You are the {name}.", description=f"The {name}.") for name in names]
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(*specialists))
    assert [entry.version for entry in lead.multiagent.agents] == [1, 1, 1]
    for name in names:
        mock.rules({"when": {"system_contains": f"You are the {name}."}, "answer": [{"gate": gates[name]}, {"text": f"{name} is done."}]})
    mock.rules(
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": [{"text": "Go."}, *[start(name, f"Task of {name}") for name in names]]},
        {"when": {"system_contains": "You lead.", "last_user_contains": "Tester is done."}, "answer": "All of it is done."},
        {"when": {"system_contains": "You lead."}, "answer": "I wait."},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "Do it.")
        for name in names:
            # Each stands at its gate while the others do: they run at the same time.
            mock.wait_blocked(gates[name])
        running = children(client, session, statuses=["running"])
        assert [thread.agent.name for thread in running] == names
        assert client.beta.sessions.retrieve(session.id).status == "running"
        for name in names:
            mock.release(gates[name])
            tail.wait(of("agent.thread_message_received", from_agent_name=name))
        tail.wait_idle("end_turn")
        records = tail.records

    threads = children(client, session)
    assert [thread.status for thread in threads] == ["idle"] * 3
    primary = next(each for each in client.beta.sessions.threads.list(session.id) if each.parent_thread_id is None)
    spans = []
    for thread, specialist in zip(threads, specialists):
        assert thread.parent_thread_id == primary.id and thread.agent.id == specialist.id
        assert thread.usage.output_tokens > 0 and thread.stats.startup_seconds == 0
        retrieved = client.beta.sessions.threads.retrieve(thread.id, session_id=session.id)
        assert (retrieved.id, retrieved.agent, retrieved.usage) == (thread.id, thread.agent, thread.usage)
        own = events(client, session, thread)
        assert order.shape(own) == [
            "session.thread_status_running",
            "agent.thread_message_received",
            "span.model_request_start",
            "agent.message",
            "span.model_request_end",
            "agent.thread_message_sent",
            "session.thread_status_idle(end_turn)",
        ]
        (received,) = [event for event in own if event["type"] == "agent.thread_message_received"]
        assert received["from_session_thread_id"] == primary.id and "from_agent_name" not in received
        assert all("session_thread_id" not in event for event in own if event["type"] in order.CALLS)
        times = {event["type"]: event["processed_at"] for event in own if event["type"].startswith("span.")}
        spans.append((times["span.model_request_start"], times["span.model_request_end"]))
    assert max(begin for begin, _ in spans) < min(end for _, end in spans), "the three requests overlap"

    # Nothing of the children's own work is in the session's view, and no call of the coordinator's tools.
    seen = {event["type"] for event in records if event.get("session_thread_id") not in (None, primary.id)}
    assert seen == {"session.thread_created", "session.thread_status_running", "session.thread_status_idle"}
    assert not [event for event in records if event["type"] in order.CALLS]
    sent = [event for event in records if event["type"] == "agent.thread_message_sent"]
    assert [event["to_agent_name"] for event in sent] == names
    first = [event["type"] for event in records if event["type"].startswith(("session.thread_", "agent.thread_"))][1:4]
    assert first == ["session.thread_created", "agent.thread_message_sent", "session.thread_status_running"]
    usage = client.beta.sessions.retrieve(session.id).usage
    everyone = list(client.beta.sessions.threads.list(session.id))
    assert usage.output_tokens == sum(thread.usage.output_tokens for thread in everyone)
    reports = [request for request in mock.requests() if "is done." in request["body"]]
    assert any("Message from thread" in request["body"] for request in reports), "the model sees who reports"


def test_the_system_prompts_of_a_coordinator_and_its_child(client, make, mock) -> None:
    helper = make.agent(name="Helper", system="You help.", tools=[toolset()])
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(helper), tools=[custom()])
    mock.rules(
        {"when": {"tool": "create_agent", "turn": 0}, "answer": [start("Helper", "Help.")]},
        {"when": {"tool": "create_agent"}, "answer": "waiting"},
        {"when": {"tool": "bash"}, "answer": "helped"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        tail.wait(of("agent.thread_message_received"))
        tail.wait_idle("end_turn")
    bodies = [mock.body(request) for request in mock.requests()]
    (child,) = [body for body in bodies if any(tool["name"] == "bash" for tool in body["tools"])]
    leads = [body for body in bodies if body is not child]
    assert len({str(body["system"]) + str(body["tools"]) for body in leads}) == 1, "a prompt's prefix stays the same"
    assert {tool["name"] for tool in leads[0]["tools"]} == {"lookup", "list_agents", "create_agent", "send_to_agent"}
    assert "`Helper`" in str(leads[0]["system"]) and "You lead." in str(leads[0]["system"])
    assert "You help." in str(child["system"]) and "You lead." not in str(child["system"])
    assert child["messages"][0]["content"][0]["text"] == "Help."


def test_a_follow_up_finds_a_child_that_remembers(client, make, mock) -> None:
    keeper = make.agent(name="Keeper", system="You keep.")
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(keeper))
    mock.rules(
        {"when": {"system_contains": "You keep.", "last_user_contains": "Remember"}, "answer": "I remember 4711."},
        {"when": {"system_contains": "You keep.", "contains": "I remember 4711."}, "answer": "It was 4711."},
        {"when": {"system_contains": "You lead.", "last_user_contains": "begin"}, "times": 1, "answer": [start("Keeper", "Remember 4711.")]},
        {
            "when": {"system_contains": "You lead.", "last_user_contains": "What was it?"},
            "times": 1,
            "answer": [{"tool": {"name": "send_to_agent", "input": {"session_thread_id": "{{sthr_:1}}", "message": "What was it?"}}}],
        },
        {"when": {"system_contains": "You lead."}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "begin")
        tail.wait(of("agent.thread_message_received"))
        tail.wait_idle("end_turn")
        (thread,) = children(client, session)
        after = tail.count()
        make.say(session, "What was it?")
        answer = tail.wait(of("agent.thread_message_received"), after=after)
        tail.wait_idle("end_turn", after=after)
    assert answer["content"] == [{"type": "text", "text": "It was 4711."}]
    assert [each.id for each in children(client, session)] == [thread.id]
    received = [event for event in events(client, session, thread) if event["type"] == "agent.thread_message_received"]
    assert len(received) == 2


def test_self_is_a_copy_that_cannot_go_deeper(client, make, mock) -> None:
    lead = make.agent(name="Lead", system="You are many.", multiagent=roster({"type": "self"}))
    (entry,) = lead.multiagent.agents
    assert (entry.type, entry.id, entry.version) == ("agent", lead.id, 1)
    mock.rules(
        {"when": {"tool": "create_agent", "turn": 0}, "answer": [start("Lead", "Be a copy.")]},
        {"when": {"tool": "create_agent"}, "answer": "waiting"},
        {"when": {"system_contains": "has started you", "turn": 0}, "answer": [start("Lead", "Deeper.")]},
        {"when": {"tool_result_contains": "Only the session's primary thread"}, "answer": "I stay here."},
    )
    session = make.session(
        {"type": "agent_with_overrides", "id": lead.id, "system": "You are many today."}
    )
    (copy,) = session.agent.multiagent.agents
    assert copy.system == "You are many today."
    with open_session(client, session) as tail:
        make.say(session, "go")
        report = tail.wait(of("agent.thread_message_received", from_agent_name="Lead"))
        tail.wait_idle("end_turn")
    assert report["content"] == [{"type": "text", "text": "I stay here."}]
    (thread,) = children(client, session)
    assert thread.agent.id == lead.id and thread.agent.system == "You are many today."


@covers("beta.sessions.events.send", "beta.sessions.threads.events.stream")
def test_a_childs_calls_are_answered_through_the_primary_stream(client, make, mock) -> None:
    worker = make.agent(name="Worker", system="You work.", tools=[toolset("always_ask"), custom()])
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(worker))
    calls = [{"tool": {"name": "bash", "input": {"command": "echo allowed"}}}, {"tool": {"name": "lookup", "input": {"key": "k"}}}]
    mock.rules(
        {"when": {"system_contains": "You work.", "turn": 0}, "answer": calls},
        {"when": {"system_contains": "You work.", "tool_results": 2}, "answer": "Both are there."},
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": [start("Worker", "Work.")]},
        {"when": {"system_contains": "You lead."}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        idle = tail.wait_idle("requires_action")
        (thread,) = children(client, session)
        assert thread.status == "idle"
        ask = tail.wait(of("agent.tool_use", session_thread_id=thread.id))
        call = tail.wait(of("agent.custom_tool_use", session_thread_id=thread.id))
        assert set(idle["stop_reason"]["event_ids"]) == {ask["id"], call["id"]}
        with pytest.raises(anthropic.BadRequestError, match="waiting on responses to events"):
            make.say(session, "hello?")
        after = tail.count()
        (echo,) = make.send(session, {"type": "user.custom_tool_result", "custom_tool_use_id": call["id"], "content": [{"type": "text", "text": "value"}]}).data
        assert echo.session_thread_id == thread.id
        left = tail.wait_idle("requires_action", after=after)
        assert left["stop_reason"]["event_ids"] == [ask["id"]]
        with open_thread(client, session, thread.id) as own:
            (echo,) = make.send(session, {"type": "user.tool_confirmation", "tool_use_id": ask["id"], "result": "allow"}).data
            assert echo.session_thread_id == thread.id
            result = own.wait_type("agent.tool_result")
            assert "allowed" in str(result["content"])
            own.wait_type("agent.message")
        tail.wait(of("agent.thread_message_received"))
        tail.wait_idle("end_turn", after=after)
        with pytest.raises(anthropic.BadRequestError, match="already answered"):
            make.send(session, {"type": "user.tool_confirmation", "tool_use_id": ask["id"], "result": "allow"})
    own = events(client, session, thread)
    named = [event for event in own if event["type"] in ("agent.tool_use", "agent.custom_tool_use", "user.tool_confirmation", "user.custom_tool_result")]
    assert len(named) == 4 and not [event for event in named if "session_thread_id" in event]
    listed = [event.to_dict(mode="json") for event in client.beta.sessions.events.list(session.id)]
    same = {event["id"]: event for event in listed if event["id"] in {each["id"] for each in named}}
    assert len(same) == 4 and all(event["session_thread_id"] == thread.id for event in same.values())


def test_the_26th_thread_is_refused_and_a_slot_can_be_freed(client, make, mock) -> None:
    worker = make.agent(name="Worker", system="You work.")
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(worker))
    mock.rules(
        {"when": {"system_contains": "You work."}, "answer": "done"},
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": [start("Worker", f"Task {n}") for n in range(26)]},
        {"when": {"system_contains": "You lead.", "last_user_contains": "another"}, "times": 1, "answer": [start("Worker", "One more")]},
        {"when": {"system_contains": "You lead."}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        tail.wait(of("agent.thread_message_received"), count=25)
        tail.wait_idle("end_turn")
        threads = children(client, session)
        assert len(threads) == 25 and {thread.status for thread in threads} == {"idle"}
        assert len([event for event in tail.records if event["type"] == "session.thread_created"]) == 25
        results = [request for request in mock.requests() if "No thread was started" in request["body"]]
        assert results, "the model is told, and can act on it"
        freed = client.beta.sessions.threads.archive(threads[0].id, session_id=session.id)
        assert freed.status == "terminated" and freed.archived_at is not None
        after = tail.count()
        make.say(session, "another")
        tail.wait(of("agent.thread_message_received"), after=after)
        tail.wait_idle("end_turn", after=after)
    assert len(children(client, session)) == 26
    assert [thread.id for thread in children(client, session, statuses=["terminated"])] == [threads[0].id]
    pages = client.beta.sessions.threads.list(session.id, limit=10)
    assert len(pages.data) == 10 and len(list(pages)) == 27


def test_a_childs_failure_is_reported_and_survived(client, make, mock) -> None:
    worker = make.agent(name="Worker", system="You fail.")
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(worker))
    mock.rules(
        {"when": {"system_contains": "You fail."}, "answer": [{"error": {"status": 400}}]},
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": [start("Worker", "Fail.")]},
        {"when": {"system_contains": "You lead.", "last_user_contains": "has failed"}, "answer": "I do it myself."},
        {"when": {"system_contains": "You lead."}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        over = tail.wait(of("session.thread_status_terminated"))
        tail.wait(lambda event: event["type"] == "agent.message" and event["content"][0]["text"] == "I do it myself.")
        tail.wait_idle("end_turn")
        shapes = order.shape(tail.records)
    (thread,) = children(client, session)
    assert over["session_thread_id"] == thread.id and thread.status == "terminated" and thread.archived_at is None
    at = shapes.index("session.thread_status_idle(retries_exhausted)")
    assert shapes[at + 1] == "session.thread_status_terminated"
    with open_thread(client, session, thread.id) as own:
        own.wait_end()
        assert [event["type"] for event in own.records] == ["session.thread_status_terminated"]
    with pytest.raises(anthropic.BadRequestError, match="terminated"):
        make.send(session, {"type": "user.interrupt", "session_thread_id": thread.id})


@covers("beta.sessions.threads.archive")
def test_interrupt_and_archive_of_one_thread(client, make, mock) -> None:
    gate = mock.gate()
    worker = make.agent(name="Worker", system="You work.", tools=[custom()])
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(worker))
    mock.rules(
        {"when": {"system_contains": "You work.", "last_user_contains": "Wait"}, "answer": [{"text": "half"}, {"gate": gate}, {"text": "never"}]},
        {"when": {"system_contains": "You work.", "last_user_contains": "Ask"}, "answer": [{"tool": {"name": "lookup", "input": {}}}]},
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": [start("Worker", "Wait."), start("Worker", "Ask.")]},
        {"when": {"system_contains": "You lead."}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        mock.wait_blocked(gate)
        call = tail.wait_type("agent.custom_tool_use")
        busy, asking = children(client, session)
        with pytest.raises(anthropic.BadRequestError, match="running"):
            client.beta.sessions.threads.archive(busy.id, session_id=session.id)
        with open_thread(client, session, busy.id) as own:
            make.send(session, {"type": "user.interrupt", "session_thread_id": busy.id})
            own.wait(of("session.thread_status_idle", session_thread_id=busy.id))
            assert "agent.message" not in {event["type"] for event in own.records}
        idle = tail.wait_idle("requires_action")
        assert idle["stop_reason"]["event_ids"] == [call["id"]]
        mock.release(gate)
        # No report comes of an interrupted turn.
        assert not [event for event in tail.records if event["type"] == "agent.thread_message_received"]
        # The other one waits for its call: an interrupt ends the wait without asking its model again.
        asked = len(mock.requests())
        after = tail.count()
        make.send(session, {"type": "user.interrupt", "session_thread_id": asking.id})
        tail.wait(of("session.thread_status_idle", session_thread_id=asking.id, stop_reason={"type": "end_turn"}), after=after)
        tail.wait_idle("end_turn", after=after)
        assert len(mock.requests()) == asked
        for thread in (busy, asking):
            archived = client.beta.sessions.threads.archive(thread.id, session_id=session.id)
            assert archived.status == "terminated" and archived.archived_at is not None
            again = client.beta.sessions.threads.archive(thread.id, session_id=session.id)
            assert again.archived_at == archived.archived_at
            tail.wait(of("session.thread_status_terminated", session_thread_id=thread.id))
            with pytest.raises(anthropic.BadRequestError, match="terminated"):
                make.send(session, {"type": "user.interrupt", "session_thread_id": thread.id})
    with pytest.raises(anthropic.BadRequestError):
        make.send(session, {"type": "user.custom_tool_result", "custom_tool_use_id": call["id"]})
    with pytest.raises(anthropic.BadRequestError, match="not a thread of this session"):
        make.send(session, {"type": "user.interrupt", "session_thread_id": "sthr_01" + "1" * 22})


def test_a_thread_that_waits_can_be_archived(client, make, mock) -> None:
    worker = make.agent(name="Worker", system="You work.", tools=[custom()])
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(worker))
    mock.rules(
        {"when": {"system_contains": "You work."}, "answer": [{"tool": {"name": "lookup", "input": {}}}]},
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": [start("Worker", "Ask.")]},
        {"when": {"system_contains": "You lead."}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        tail.wait_idle("requires_action")
        (thread,) = children(client, session)
        after = tail.count()
        client.beta.sessions.threads.archive(thread.id, session_id=session.id)
        tail.wait_idle("end_turn", after=after)
        make.say(session, "and now?")
        tail.wait_idle("end_turn", after=tail.count() - 1)


def test_an_advisor_is_consulted(client, make, mock) -> None:
    wise = f"{mock.model}-wise"
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster({"type": "advisor", "model": wise}))
    assert lead.multiagent.agents[-1].to_dict() == {"type": "advisor", "model": wise}
    mock.rules(
        {"when": {"model": wise, "last_user_contains": "Left or right?"}, "answer": "Left."},
        {"when": {"turn": 0}, "answer": [{"tool": {"name": "consult_advisor", "input": {"question": "Left or right?"}}}]},
        {"when": {"tool_result_contains": "Left."}, "answer": "I go left."},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        tail.wait_idle("end_turn")
        records = tail.records
    (thread,) = children(client, session)
    assert thread.agent.to_dict() == {"type": "advisor", "model": wise} and thread.status == "terminated"
    of_advisor = [
        event
        for event in records
        if thread.id in (event.get("session_thread_id"), event.get("from_session_thread_id"), event.get("to_session_thread_id"))
    ]
    assert [event["type"] for event in of_advisor] == [
        "session.thread_created",
        "session.thread_status_running",
        "agent.thread_message_received",
        "session.thread_status_idle",
        "session.thread_status_terminated",
    ]
    assert {event.get("agent_name", event.get("from_agent_name")) for event in of_advisor} == {"anthropic.advisor"}
    assert of_advisor[2]["content"] == [{"type": "text", "text": "Left."}]
    assert any(event["type"] == "agent.message" and event["content"][0]["text"] == "I go left." for event in records)
    own = events(client, session, thread)
    assert [event["type"] for event in own].count("agent.thread_message_sent") == 1


def test_an_advisor_that_fails_costs_nothing(client, make, mock) -> None:
    wise = f"{mock.model}-wise"
    lead = make.agent(name="Lead", multiagent=roster({"type": "advisor", "model": wise}))
    mock.rules(
        {"when": {"model": wise}, "answer": [{"error": {"status": 400}}]},
        {"when": {"turn": 0}, "answer": [{"tool": {"name": "consult_advisor", "input": {"question": "Why?"}}}]},
        {"when": {"tool_result_contains": "not available"}, "answer": "Then without."},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        tail.wait(lambda event: event["type"] == "agent.message" and event["content"][0]["text"] == "Then without.")
        tail.wait_idle("end_turn")


def test_inline_agents(client, make, mock) -> None:
    lead = make.agent(name="Lead", system="You lead.", tools=[custom()], multiagent={"type": "multiagent_20261001", "workflows": {"type": "disabled"}})
    assert lead.multiagent.subagents.inline_agents.type == "enabled" and lead.multiagent.advisor.type == "disabled"
    inline = {"name": "n" * 80, "description": "d" * 300, "system": "You are made up."}
    mock.rules(
        {"when": {"system_contains": "You are made up."}, "answer": "Made up, but done."},
        {"when": {"turn": 0}, "answer": [{"tool": {"name": "create_agent", "input": {"inline_agent": inline, "message": "Do."}}}]},
        {"when": {}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        tail.wait(of("agent.thread_message_received"))
        tail.wait_idle("end_turn")
    (thread,) = children(client, session)
    assert thread.agent.type == "inline"
    assert (thread.agent.name, thread.agent.description) == ("n" * 64, "d" * 256)
    assert [tool.name for tool in thread.agent.tools] == ["lookup"]
    updated = client.beta.agents.update(lead.id, multiagent={"type": "multiagent_20261001", "workflows": None})
    assert updated.version == 2 and updated.multiagent.workflows.type == "enabled"
    assert updated.multiagent.subagents == lead.multiagent.subagents


def test_previews_are_for_the_thread_that_is_read(client, make, mock) -> None:
    gate = mock.gate()
    worker = make.agent(name="Worker", system="You work.")
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(worker))
    mock.rules(
        {"when": {"system_contains": "You work.", "last_user_contains": "Again"}, "answer": [{"text": ["one ", "two ", "three"]}, {"gate": gate}, {"text": ["!"]}]},
        {"when": {"system_contains": "You work."}, "answer": "first"},
        {"when": {"system_contains": "You lead.", "last_user_contains": "begin"}, "times": 1, "answer": [start("Worker", "Start.")]},
        {
            "when": {"system_contains": "You lead.", "last_user_contains": "repeat"},
            "times": 1,
            "answer": [{"tool": {"name": "send_to_agent", "input": {"session_thread_id": "{{sthr_:1}}", "message": "Again."}}}],
        },
        {"when": {"system_contains": "You lead."}, "answer": [{"stop": "end_turn"}]},
    )
    session = make.session(lead)
    with open_session(client, session, event_deltas=["agent.message"]) as tail:
        make.say(session, "begin")
        tail.wait(of("agent.thread_message_received"))
        tail.wait_idle("end_turn")
        (thread,) = children(client, session)
        with open_thread(client, session, thread.id, event_deltas=["agent.message"]) as own:
            after = tail.count()
            make.say(session, "repeat")
            own.wait(lambda event: event["type"] == "event_delta" and "three" in str(event["delta"]))
            mock.release(gate)
            own.wait(of("session.thread_status_idle"))
            assert order.check_stream(own.records, previews={"agent.message"}) == []
            assert {event["type"] for event in own.records} >= {"event_start", "event_delta", "agent.message"}
        tail.wait_idle("end_turn", after=after)
        assert not [event for event in tail.records if event["type"] in order.PREVIEWS]


def test_an_interrupt_of_everything_stops_every_thread(client, make, mock) -> None:
    gate = mock.gate()
    worker = make.agent(name="Worker", system="You work.")
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(worker))
    mock.rules(
        {"when": {"system_contains": "You work."}, "answer": [{"text": "half"}, {"gate": gate}]},
        {"when": {"system_contains": "You lead.", "turn": 0}, "answer": [start("Worker", "A"), start("Worker", "B")]},
        {"when": {"system_contains": "You lead."}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        make.say(session, "go")
        mock.wait_requests(4)
        make.send(session, {"type": "user.interrupt"})
        tail.wait_idle("end_turn")
        assert {thread.status for thread in client.beta.sessions.threads.list(session.id)} == {"idle"}
    mock.release(gate)


def test_an_outcome_is_judged_when_no_thread_works(client, make, mock) -> None:
    gate = mock.gate()
    worker = make.agent(name="Worker", system="You work.")
    lead = make.agent(name="Lead", system="You lead.", multiagent=roster(worker))
    verdict = {"criteria": [{"criterion": "c", "finding": "f", "met": True}], "result": "satisfied", "summary": "It is there."}
    mock.rules(
        {"when": {"forced": "submit_verdict"}, "answer": [{"tool": {"name": "submit_verdict", "input": verdict}}]},
        {"when": {"tool": "submit_verdict"}, "answer": "I have seen it."},
        {"when": {"system_contains": "You work."}, "answer": [{"gate": gate}, {"text": "done"}]},
        {"when": {"tool": "create_agent", "turn": 0}, "answer": [start("Worker", "Work.")]},
        {"when": {"tool": "create_agent"}, "answer": "ok"},
    )
    session = make.session(lead)
    with open_session(client, session) as tail:
        rubric = {"type": "text", "content": "- It is done."}
        make.send(session, {"type": "user.define_outcome", "description": "Get it done.", "rubric": rubric})
        mock.wait_blocked(gate)
        primary = next(each for each in client.beta.sessions.threads.list(session.id) if each.parent_thread_id is None)
        tail.wait(of("session.thread_status_idle", session_thread_id=primary.id))
        assert client.beta.sessions.retrieve(session.id).outcome_evaluations[0].result == "running"
        mock.release(gate)
        tail.wait(of("span.outcome_evaluation_end", result="satisfied"))
        tail.wait_idle("end_turn")
        types = [event["type"] for event in tail.records]
    assert types.count("span.outcome_evaluation_start") == 1
    assert types.index("agent.thread_message_received") < types.index("span.outcome_evaluation_start")
