"""Events: send, list, stream, previews, through the official client."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pytest
from anthropic.lib.sessions import accumulate_managed_agents_event

from conftest import toolset
from support import order
from support.registry import covers
from support.tail import open_raw, open_sdk


def text(value: str) -> dict:
    return {"type": "user.message", "content": [{"type": "text", "text": value}]}


@covers("beta.sessions.events.send", "beta.sessions.events.list", "beta.sessions.events.stream")
def test_a_turn_seen_from_all_sides(client, make, mock) -> None:
    mock.answer("Hello there.")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        sent = make.say(session, "hi")
        (message,) = sent.data
        assert message.type == "user.message" and message.id.startswith("sevt_01")
        tail.wait_idle("end_turn")
        assert client.beta.sessions.retrieve(session.id).status == "idle", "the status is committed with the event"
        stream = tail.records
    listed = [event.to_dict(mode="json") for event in client.beta.sessions.events.list(session.id)]
    assert order.dedupe(stream) == listed
    forms = [event["processed_at"] for event in stream if event["id"] == message.id]
    assert len(forms) == 2 and forms[0] is None and forms[1] is not None
    assert [event["id"] for event in listed].count(message.id) == 1
    (answer,) = [event for event in listed if event["type"] == "agent.message"]
    assert answer["content"] == [{"type": "text", "text": "Hello there."}]


def test_running_right_after_the_post(client, make, mock) -> None:
    gate = mock.gate()
    mock.rules({"answer": [{"gate": gate}, {"text": "ok"}]})
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        assert client.beta.sessions.retrieve(session.id).status == "running"
        mock.release(gate)
        tail.wait_idle()


def test_stream_opened_after_sending_to_an_instant_model(client, make, mock) -> None:
    mock.answer("instant")
    for _ in range(5):
        session = make.session()
        make.say(session, "hi")
        mock.wait_requests(1, ended=True)
        # As the SDK's own examples do it: send, then open, then wait for idle.
        with open_sdk(client, session.id) as tail:
            tail.wait_idle("end_turn")
            types = [event["type"] for event in tail.records]
        assert types.count("agent.message") == 1 and types.count("session.status_idle") == 1
        assert order.check_stream(tail.records) == []


def test_a_stream_without_a_recent_post_replays_nothing(client, make, mock, raw) -> None:
    mock.answer("one")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        done = tail.wait_idle("end_turn")
    # The window is counted from the POST; wait it out against the server's own clock.
    started = datetime.fromisoformat(done["processed_at"].replace("Z", "+00:00"))
    while (datetime.now(timezone.utc) - started).total_seconds() < 5.5:
        time.sleep(0.1)
    with open_sdk(client, session.id) as late:
        gate = mock.gate()
        client.beta.sessions.update(session.id, title=gate)
        late.wait_type("session.updated")
        assert [event["type"] for event in late.records] == ["session.updated"]


def test_last_event_id_resumes_exactly(client, make, mock, raw) -> None:
    mock.answer("one")
    session = make.session()
    with open_raw(raw, f"/v1/sessions/{session.id}/events/stream") as tail:
        make.say(session, "hi")
        tail.wait_idle("end_turn")
        whole = list(tail.raw)
    assert len(whole) == 10
    for position, record in enumerate(whole[:-1]):
        headers = {"last-event-id": record.sse_id}
        with open_raw(raw, f"/v1/sessions/{session.id}/events/stream", headers=headers) as again:
            again.wait_idle("end_turn")
            assert [each.sse_id for each in again.raw] == [each.sse_id for each in whole[position + 1 :]]


def test_messages_sent_while_running_are_queued_and_shown_twice(client, make, mock) -> None:
    gate = mock.gate()
    mock.rules(
        {"when": {"nth": 1}, "answer": [{"text": "first"}, {"gate": gate}]},
        {"answer": "later"},
    )
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "one")
        mock.wait_blocked(gate)
        (second,) = make.say(session, "two").data
        (third,) = make.say(session, "three").data
        assert second.processed_at is None and third.processed_at is None
        queued = [event.id for event in client.beta.sessions.events.list(session.id) if getattr(event, "processed_at", 1) is None]
        assert queued == [second.id, third.id], "queued events stand last, once"
        mock.release(gate)
        tail.wait(lambda event: event.get("id") == third.id and event["processed_at"] is not None)
        tail.wait(lambda event: event["type"] == "agent.message" and "later" in str(event["content"]))
        deadline = time.monotonic() + 20
        while client.beta.sessions.retrieve(session.id).status != "idle":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for message in (second, third):
            forms = [event["processed_at"] is not None for event in tail.records if event.get("id") == message.id]
            assert forms == [False, True]
    listed = [event.id for event in client.beta.sessions.events.list(session.id)]
    assert listed.count(second.id) == 1 and listed.index(second.id) < listed.index(third.id)
    last = mock.body(mock.requests()[-1])
    said = str(last["messages"])
    assert said.index("two") < said.index("three")


def test_two_messages_in_one_request_keep_their_order(client, make, mock) -> None:
    mock.answer("ok")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        first, second = make.say(session, "alpha", "beta").data
        tail.wait(lambda event: event.get("id") == second.id and event["processed_at"] is not None)
        deadline = time.monotonic() + 20
        while client.beta.sessions.retrieve(session.id).status != "idle":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        processed = [event["id"] for event in tail.records if event["type"] == "user.message" and event["processed_at"]]
        assert processed == [first.id, second.id]


def test_list_pages_filters_and_orders(client, make, mock) -> None:
    mock.answer("ok")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        for number in range(1, 4):
            make.say(session, f"message {number}")
            tail.wait_idle("end_turn", count=number)
    events = client.beta.sessions.events
    whole = list(events.list(session.id))
    ids = [event.id for event in whole]
    assert len(ids) == len(set(ids)) == 27
    for limit in (1, 5, 7, 27, 1000):
        assert [event.id for event in events.list(session.id, limit=limit)] == ids
        assert [event.id for event in events.list(session.id, limit=limit, order="desc")] == ids[::-1]
    only = [event.id for event in whole if event.type in ("user.message", "session.status_idle")]
    assert [event.id for event in events.list(session.id, limit=2, types=["user.message", "session.status_idle"])] == only
    middle = whole[10]
    assert middle.processed_at is not None
    at = middle.processed_at
    expected = {
        "created_at_gte": [event.id for event in whole if event.processed_at >= at],
        "created_at_gt": [event.id for event in whole if event.processed_at > at],
        "created_at_lte": [event.id for event in whole if event.processed_at <= at],
        "created_at_lt": [event.id for event in whole if event.processed_at < at],
    }
    for name, wanted in expected.items():
        assert [event.id for event in events.list(session.id, limit=3, **{name: at})] == wanted, name


def test_unbracketed_and_bracketed_arrays_mean_the_same(raw, make, mock, client) -> None:
    mock.answer("ok")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        tail.wait_idle()
    path = f"/v1/sessions/{session.id}/events"
    for query in ("types[]=user.message&types[]=agent.message", "types=user.message&types=agent.message", "types%5B%5D=user.message&types%5B%5D=agent.message&beta=true"):
        assert [event["type"] for event in raw.get(f"{path}?{query}").json()["data"]] == ["user.message", "agent.message"]


def test_deltas_through_the_sdks_own_accumulator(client, make, mock) -> None:
    gate = mock.gate()
    pieces = ["Once ", "upon ", "a ", "time"]
    mock.rules({"answer": [{"thinking": "hm"}, {"text": pieces[:2]}, {"gate": gate}, {"text": pieces[2:]}]})
    session = make.session()
    previews = {"agent.message", "agent.thinking"}
    with open_sdk(client, session.id, event_deltas=sorted(previews)) as tail, open_sdk(client, session.id) as plain:
        make.say(session, "tell")
        tail.wait_type("event_delta")
        mock.release(gate)
        tail.wait_idle("end_turn")
        plain.wait_idle("end_turn")
        seen, raw_events = list(tail.records), list(tail.raw)
        assert not {event["type"] for event in plain.records} & order.PREVIEWS
    assert order.check_stream(seen, previews=previews) == []
    snapshots: dict[str, object] = {}
    before_final: dict[str, str] = {}
    for event in raw_events:
        if event.type == "event_start":
            snapshots[event.event.id] = accumulate_managed_agents_event(None, event)
        elif event.type == "event_delta":
            snapshots[event.event_id] = accumulate_managed_agents_event(snapshots[event.event_id], event)
            before_final[event.event_id] = "".join(block.text for block in snapshots[event.event_id].content)
        elif event.type == "agent.message":
            final = accumulate_managed_agents_event(snapshots.get(event.id), event)
            assert final == event
            if event.id in before_final:
                assert "".join(block.text for block in event.content).startswith(before_final[event.id])
                assert before_final[event.id]
    starts = [event["event"]["type"] for event in seen if event["type"] == "event_start"]
    assert "agent.thinking" in starts and "agent.message" in starts
    deltas = {event["event_id"] for event in seen if event["type"] == "event_delta"}
    thinking = {event["event"]["id"] for event in seen if event["type"] == "event_start" and event["event"]["type"] == "agent.thinking"}
    assert not deltas & thinking, "thinking has a start only"
    persisted = {event.type for event in client.beta.sessions.events.list(session.id)}
    assert not persisted & order.PREVIEWS


def test_only_the_previews_asked_for(client, make, mock) -> None:
    mock.rules({"answer": [{"thinking": "hm"}, {"text": ["a", "b"]}]})
    session = make.session()
    with open_sdk(client, session.id, event_deltas=["agent.thinking"]) as tail:
        make.say(session, "hi")
        tail.wait_idle("end_turn")
        assert {event["event"]["type"] for event in tail.records if event["type"] == "event_start"} <= {"agent.thinking"}
        assert not [event for event in tail.records if event["type"] == "event_delta"]


def test_a_late_subscriber_gets_no_preview_of_a_running_request(client, make, mock) -> None:
    gate = mock.gate()
    mock.rules({"answer": [{"text": ["some"]}, {"gate": gate}, {"text": ["more"]}]})
    session = make.session()
    with open_sdk(client, session.id, event_deltas=["agent.message"]) as early:
        make.say(session, "hi")
        early.wait_type("event_delta")
        with open_sdk(client, session.id, event_deltas=["agent.message"]) as late:
            mock.release(gate)
            late.wait_idle("end_turn")
            assert not {event["type"] for event in late.records} & order.PREVIEWS


def test_many_subscribers_see_the_same(client, make, mock, raw) -> None:
    mock.answer("ok")
    session = make.session()
    tails = [open_raw(raw, f"/v1/sessions/{session.id}/events/stream") for _ in range(20)]
    make.say(session, "hi")
    for tail in tails:
        tail.wait_idle("end_turn")
    first = [record.sse_id for record in tails[0].raw]
    assert all([record.sse_id for record in tail.raw] == first for tail in tails)
    for tail in tails:
        tail.close()


def test_content_of_every_kind_is_echoed(client, make, mock) -> None:
    mock.answer("seen")
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    content = [
        {"type": "text", "text": "look \u00e9\u4e2d\U0001f600"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "notes"}, "title": "t"},
    ]
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, {"type": "user.message", "content": content})
        tail.wait_idle("end_turn")
    (message,) = client.beta.sessions.events.list(session.id, types=["user.message"])
    body = message.to_dict(mode="json")
    assert body["content"][0]["text"] == content[0]["text"]
    assert body["content"][1]["source"]["data"] == png
    assert body["content"][2]["source"]["data"] == "notes"
    asked = mock.body(mock.requests()[0])
    kinds = [block["type"] for block in asked["messages"][-1]["content"]]
    assert kinds == ["text", "image", "document"]


def test_system_messages_reach_the_next_turn(client, make, mock) -> None:
    mock.answer("ok")
    session = make.session()
    with open_sdk(client, session.id) as tail:
        make.send(session, text("hi"), {"type": "system.message", "content": [{"type": "text", "text": "be brief 7341"}]})
        tail.wait_idle("end_turn")
        tail.wait(lambda event: event["type"] == "system.message" and event["processed_at"] is not None)
    assert "be brief 7341" in mock.requests()[-1]["body"]


def test_the_asynchronous_client_streams(server, make, mock, client) -> None:
    import anyio
    import anthropic

    mock.answer("async")
    session = make.session()

    async def run() -> list[str]:
        async with anthropic.AsyncAnthropic(
            base_url=server.url, api_key=server.key, max_retries=0, timeout=30, _strict_response_validation=True
        ) as remote:
            seen = []
            with anyio.fail_after(20):
                stream = await remote.beta.sessions.events.stream(session.id)
                await remote.beta.sessions.events.send(session.id, events=[text("hi")])
                async for event in stream:
                    seen.append(event.type)
                    if event.type == "session.status_idle":
                        break
                await stream.close()
            return seen

    assert "agent.message" in anyio.run(run)


def test_prompt_prefix_is_stable_from_turn_to_turn(client, make, mock) -> None:
    """What the model has seen once, it sees again byte for byte: prompt caches live on that."""
    mock.rules({"answer": [{"thinking": "deep"}, {"text": "ok"}]})
    session = make.session(tools=[toolset()])
    with open_sdk(client, session.id) as tail:
        for number in range(1, 4):
            make.say(session, f"message {number}")
            tail.wait_idle("end_turn", count=number)

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(each) for key, each in value.items() if key != "cache_control"}
        return [strip(each) for each in value] if isinstance(value, list) else value

    bodies = [strip(mock.body(entry)) for entry in mock.requests()]
    assert len(bodies) == 3
    for earlier, later in zip(bodies, bodies[1:]):
        assert later["tools"] == earlier["tools"] and later["system"] == earlier["system"]
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]


def test_concurrent_senders_lose_nothing(client, make, mock) -> None:
    mock.answer("ok")
    session = make.session()
    start = threading.Barrier(8)

    def send(number: int) -> str:
        start.wait()
        return make.say(session, f"from {number}").data[0].id

    with open_sdk(client, session.id) as tail:
        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(send, range(8)))
        for identity in ids:
            tail.wait(lambda event, identity=identity: event.get("id") == identity and event["processed_at"] is not None)
    listed = [event.id for event in client.beta.sessions.events.list(session.id, types=["user.message"])]
    assert set(listed) == ids and len(listed) == 8


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", None])
@pytest.mark.parametrize("form", ["bearer", "x-api-key"])
def test_old_and_new_clients_are_served(server, version, form) -> None:
    import httpx2

    headers = {"anthropic-beta": "managed-agents-2026-04-01"}
    headers |= {"anthropic-version": version} if version else {}
    headers |= {"x-api-key": server.key} if form == "x-api-key" else {"authorization": f"Bearer {server.key}"}
    assert httpx2.get(f"{server.url}/v1/sessions?beta=true", headers=headers).status_code == 200
