"""Tools of MCP servers: a real server built with the official MCP SDK, driven through sessions."""

from __future__ import annotations

import json
import socket
import time

import anthropic
import pytest

from conftest import toolset
from support import order, process
from support.process import LOOPBACK
from support.tail import open_sdk


class Talk:
    """One session with its stream."""

    def __init__(self, client, make, **agent) -> None:
        self.client, self.make = client, make
        self.session = make.session(make.agent(**agent))
        self.tail = open_sdk(client, self.session.id)

    def say(self, *lines: str, reason: str | None = "end_turn") -> list[dict]:
        """The events of the turn."""
        start = self.tail.count()
        self.make.say(self.session, "\n".join(lines))
        self.tail.wait_idle(reason, after=start, timeout=60)
        return self.tail.records[start:]

    def go_on(self, *events: dict, reason: str | None = "end_turn") -> list[dict]:
        start = self.tail.count()
        self.make.send(self.session, *events)
        self.tail.wait_idle(reason, after=start, timeout=60)
        return self.tail.records[start:]


@pytest.fixture
def talk(client, make):
    talks = []

    def start(**agent) -> Talk:
        talks.append(Talk(client, make, **agent))
        return talks[-1]

    yield start
    for each in talks:
        each.tail.close()


def of(events: list[dict], name: str) -> list[dict]:
    return [event for event in events if event["type"] == name]


def results(events: list[dict]) -> list[dict]:
    return of(events, "agent.mcp_tool_result")


def text(result: dict) -> str:
    return "".join(block.get("text", "") for block in result["content"])


def offered(mock) -> list[list[str]]:
    """The tools of each request to the model."""
    return [[tool["name"] for tool in mock.body(entry).get("tools", [])] for entry in mock.requests()]


def confirm(call: dict, result: str = "allow", **fields) -> dict:
    return {"type": "user.tool_confirmation", "tool_use_id": call["id"], "result": result, **fields}


DIALECTS = {
    "newest": {},
    "json": {"json_answers": True},
    "initialize": {"legacy": True},
    "initialize-json": {"legacy": True, "json_answers": True},
    "sse": {"transport": "sse"},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_in_every_dialect(talk, mcp_server, dialect) -> None:
    with mcp_server(**DIALECTS[dialect]) as mcp:
        chat = talk(**mcp.agent())
        events = chat.say('!tool mcp__tests__echo {"text": "one"}', '!tool mcp__tests__weather {"place": "here"}')
        calls = of(events, "agent.mcp_tool_use")
        assert [(call["mcp_server_name"], call["name"], call["input"]) for call in calls] == [
            ("tests", "echo", {"text": "one"}),
            ("tests", "weather", {"place": "here"}),
        ]
        assert {call["evaluated_permission"] for call in calls} == {"allow"}
        found = {result["mcp_tool_use_id"]: result for result in results(events)}
        assert [text(found[call["id"]]) for call in calls[:1]] == ["one"]
        assert json.loads(text(found[calls[1]["id"]])) == {"place": "here", "degrees": 7}
        assert not any(result["is_error"] for result in found.values())
        assert not of(events, "session.error")
        methods = mcp.methods()
        assert ("initialize" in methods) == (dialect not in ("newest", "json")), methods
        # The next turn uses what stands.
        chat.say('!tool mcp__tests__echo {"text": "two"}')
        assert [call["arguments"] for call in mcp.calls()][-1] == {"text": "two"}
        assert mcp.methods().count("initialize") == methods.count("initialize")


def test_calls_ask_by_default(talk, client, mcp_server, mock) -> None:
    with mcp_server() as mcp:
        chat = talk(**mcp.agent(policy=None))
        events = chat.say(
            '!tool mcp__tests__echo {"text": "one"}', '!tool mcp__tests__echo {"text": "two"}', reason="requires_action"
        )
        first, second = of(events, "agent.mcp_tool_use")
        assert first["evaluated_permission"] == "ask" and first["evaluation"] == {"type": "always_ask"}
        assert of(events, "session.status_idle")[0]["stop_reason"]["event_ids"] == [first["id"], second["id"]]
        assert mcp.calls() == []
        events = chat.go_on(confirm(first), confirm(second, "deny", deny_message="not that one"))
        allowed, denied = sorted(results(events), key=lambda result: result["is_error"])
        assert allowed["mcp_tool_use_id"] == first["id"] and text(allowed) == "one"
        assert denied["mcp_tool_use_id"] == second["id"] and "not that one" in text(denied)
        assert [call["arguments"] for call in mcp.calls()] == [{"text": "one"}]
        # The model sees its own names, whatever events show.
        calls = mock.body(mock.requests()[-1])["messages"][1]["content"]
        assert {block["name"] for block in calls} == {"mcp__tests__echo"}


def test_policies_and_settings_by_tool(talk, mcp_server, mock) -> None:
    with mcp_server() as mcp:
        tools = mcp.toolset("always_allow", weather="always_ask")
        tools["configs"].append({"name": "fails", "enabled": False})
        tools["configs"].append({"name": "nothing_like_it", "enabled": True})
        chat = talk(mcp_servers=[mcp.declaration()], tools=[tools])
        events = chat.say(
            '!tool mcp__tests__weather {"place": "x"}',
            '!tool mcp__tests__echo {"text": "runs meanwhile"}',
            "!tool mcp__tests__fails {}",
            reason="requires_action",
        )
        assert [text(result) for result in results(events)] == ["runs meanwhile"]
        (refused,) = of(events, "agent.tool_use")
        assert refused["evaluated_permission"] == "deny" and "evaluation" not in refused
        assert of(events, "agent.tool_result")[0]["is_error"]
        (names,) = offered(mock)
        assert "mcp__tests__weather" in names and "mcp__tests__fails" not in names
        assert names == sorted(names)
        chat.go_on(confirm(of(events, "agent.mcp_tool_use")[0]))


def test_content_of_every_kind(talk, mcp_server) -> None:
    with mcp_server() as mcp:
        chat = talk(**mcp.agent())
        (result,) = results(chat.say("!tool mcp__tests__everything {}"))
        kinds = [(block["type"], block.get("source", {}).get("type")) for block in result["content"]]
        assert kinds == [("text", None), ("image", "base64"), ("text", None), ("document", "text"), ("text", None)]
        assert result["content"][3]["source"]["data"] == "a resource" and result["content"][3]["title"] == "memo://one"
        assert "audio/wav" in result["content"][2]["text"]
        assert "https://example.com/two" in result["content"][4]["text"]
        (result,) = results(chat.say("!tool mcp__tests__fails {}"))
        assert result["is_error"] and "bound to fail" in text(result)
        (result,) = results(chat.say("!tool mcp__tests__echo {}"))
        assert result["is_error"], "an argument is missing"


def test_a_long_result_is_cut_where_there_is_no_sandbox(talk, mcp_server) -> None:
    with mcp_server() as mcp:
        (result,) = results(talk(**mcp.agent()).say('!tool mcp__tests__letters {"count": 250000}'))
        assert 100_000 <= len(text(result)) < 101_000 and "output truncated" in text(result)


@pytest.mark.docker
def test_a_long_result_goes_to_a_file(talk, mcp_server) -> None:
    with mcp_server() as mcp:
        fields = mcp.agent()
        chat = talk(mcp_servers=fields["mcp_servers"], tools=[*fields["tools"], toolset()])
        (result,) = results(chat.say('!tool mcp__tests__letters {"count": 250000}'))
        assert len(text(result)) < 20_000
        path = f"/mnt/session/tool-outputs/{result['mcp_tool_use_id']}.txt"
        assert path in text(result)
        (size,) = of(chat.say(f"!bash wc -c < {path}"), "agent.tool_result")
        assert text(size).strip() == "250000"


def test_an_interrupt_reaches_the_server(talk, mcp_server) -> None:
    with mcp_server() as mcp:
        chat = talk(**mcp.agent())
        start = chat.tail.count()
        chat.make.say(chat.session, '!tool mcp__tests__wait {"name": "a"}')
        mcp.wait_calls(1)
        events = chat.go_on({"type": "user.interrupt"})
        (result,) = results(chat.tail.records[start:])
        assert result["is_error"] and "interrupted" in text(result)
        assert mcp.wait_cancelled(1) == ["a"]
        assert of(events, "session.status_idle")
        assert [text(each) for each in results(chat.say('!tool mcp__tests__echo {"text": "still here"}'))] == ["still here"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tools_that_come_during_a_turn(talk, mcp_server, mock, dialect) -> None:
    with mcp_server(**DIALECTS[dialect]) as mcp:
        chat = talk(**mcp.agent())
        # The newer protocol tells it on a stream of its own, which may be a little later than the result.
        later = ["!then", '!tool mcp__tests__echo {"text": "on"}'] * 10
        chat.say('!tool mcp__tests__grow {"name": "brand_new"}', *later)
        found = offered(mock)
        assert "mcp__tests__brand_new" not in found[0]
        if DIALECTS[dialect].get("json_answers"):
            # A server that answers in JSON has no stream to say so on; it is seen with the next turn.
            chat.say("hello")
            found = offered(mock)
        assert "mcp__tests__brand_new" in found[-1]
        assert all(names == sorted(names) for names in found)


def test_nothing_changes_while_nothing_changes(talk, mcp_server, mock) -> None:
    with mcp_server() as one, mcp_server() as two:
        one.name, two.name = "b_first", "a_second"
        tools = [one.toolset("always_allow"), two.toolset("always_allow")]
        chat = talk(mcp_servers=[one.declaration(), two.declaration()], tools=tools)
        for _ in range(3):
            chat.say('!tool mcp__b_first__echo {"text": "x"}', '!tool mcp__a_second__echo {"text": "y"}')
        bodies = [entry["body"] for entry in mock.requests()]
        tools = {body[body.index('"tools":') : body.index('"messages":')] for body in bodies}
        assert len(bodies) == 6 and len(tools) == 1
        names = offered(mock)[0]
        assert names == sorted(names) and names[0].startswith("mcp__a_second__")
        two.add_tool("later")
        chat.say("hello")
        assert "mcp__a_second__later" in offered(mock)[-1]


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return listener.getsockname()[1]


def test_a_server_that_is_not_there(talk, mcp_server, mock) -> None:
    with mcp_server() as mcp:
        gone = {"type": "url", "name": "gone", "url": f"http://{LOOPBACK}:{closed_port()}/mcp"}
        chat = talk(
            mcp_servers=[gone, mcp.declaration()],
            tools=[mcp.toolset("always_allow", name="gone"), mcp.toolset("always_allow")],
        )
        for turn in range(2):
            events = chat.say('!tool mcp__tests__echo {"text": "works"}', "!tool mcp__gone__echo {}")
            (error,) = of(events, "session.error")
            assert error["error"]["type"] == "mcp_connection_failed_error", turn
            assert error["error"]["mcp_server_name"] == "gone"
            assert error["error"]["retry_status"] == {"type": "exhausted"}
            assert [text(result) for result in results(events)] == ["works"]
            assert of(events, "agent.tool_result")[0]["is_error"]
            names = [event["type"] for event in events]
            assert names.index("session.error") < names.index("span.model_request_start")


def test_a_server_that_ends_between_turns(talk, mcp_server) -> None:
    mcp = mcp_server()
    try:
        chat = talk(**mcp.agent())
        assert len(results(chat.say('!tool mcp__tests__echo {"text": "x"}'))) == 1
    finally:
        mcp.stop()
    events = chat.say("still there?")
    assert [event["error"]["type"] for event in of(events, "session.error")] == ["mcp_connection_failed_error"]
    # And one that ends in the middle of a turn.
    mcp = mcp_server()
    try:
        chat = talk(**mcp.agent(policy=None))
        (call,) = of(chat.say('!tool mcp__tests__echo {"text": "x"}', reason="requires_action"), "agent.mcp_tool_use")
    finally:
        mcp.stop()
    events = chat.go_on(confirm(call))
    (result,) = results(events)
    assert result["is_error"]
    errors = [event["error"] for event in of(events, "session.error")]
    assert [(error["type"], error["mcp_server_name"]) for error in errors] == [("mcp_connection_failed_error", "tests")]


def test_a_credential_that_is_missing(talk, mcp_server) -> None:
    with mcp_server(auth=True) as mcp:
        mcp.accept("a-token")
        events = talk(**mcp.agent()).say("hello")
        (error,) = of(events, "session.error")
        assert error["error"]["type"] == "mcp_authentication_failed_error"
        assert error["error"]["mcp_server_name"] == "tests"
        assert error["error"]["retry_status"] == {"type": "exhausted"}
        assert "401" in error["error"]["message"]
        assert of(events, "agent.message"), "the turn went on"
        assert mcp.tokens() == [None] and mcp.calls() == []


def test_a_bearer_token_from_a_vault(client, make, mcp_server) -> None:
    """Shown on every request to the server that it is for, and to no other."""
    with mcp_server(auth=True) as mcp, mcp_server() as other:
        mcp.accept("the-secret-token")
        other.name = "other"
        vault = client.beta.vaults.create(display_name="mcp")
        auth = {"type": "static_bearer", "mcp_server_url": mcp.url + "/", "token": "the-secret-token"}
        client.beta.vaults.credentials.create(vault.id, auth=auth)
        agent = make.agent(
            mcp_servers=[mcp.declaration(), other.declaration()],
            tools=[mcp.toolset(whoami="always_ask"), other.toolset("always_allow")],
        )
        session = make.session(agent, vault_ids=[vault.id])
        tail = open_sdk(client, session.id)
        make.say(session, "!tool mcp__tests__whoami {}", "!tool mcp__other__whoami {}")
        tail.wait_idle("requires_action", timeout=60)
        (call,) = [call for call in of(tail.records, "agent.mcp_tool_use") if call["mcp_server_name"] == "tests"]
        make.send(session, confirm(call))
        tail.wait_idle("end_turn", timeout=60)
        found = {result["mcp_tool_use_id"]: text(result) for result in results(tail.records)}
        assert found.pop(call["id"]) == "the-secret-token", "the server itself may say it"
        assert list(found.values()) == ["nobody"]
        assert mcp.tokens() == ["the-secret-token"] and other.tokens() == [None]
        # Refused from now on, and there is nothing to refresh.
        mcp.accept("another")
        start = tail.count()
        make.say(session, "hello")
        tail.wait_idle("end_turn", after=start, timeout=60)
        (error,) = of(tail.records[start:], "session.error")
        assert error["error"]["type"] == "mcp_authentication_failed_error"
        assert "the-secret-token" not in json.dumps(error)
        tail.close()


def test_places_that_no_server_may_be_at(talk, mcp_server) -> None:
    """The usual loopback address, a name that leads to it, and metadata: refused when they are dialled."""
    with mcp_server() as mcp:
        port = mcp.url.split(":")[2]
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "169.254.169.254", "10.0.0.1"):
            server = {"type": "url", "name": "inside", "url": f"http://{host}:{port}"}
            chat = talk(mcp_servers=[server], tools=[mcp.toolset("always_allow", name="inside")])
            (error,) = of(chat.say("hello"), "session.error")
            assert error["error"]["type"] == "mcp_connection_failed_error", host
            assert "not a public address" in error["error"]["message"], (host, error)
        assert mcp.requests() == []


def test_servers_come_and_go_with_updates(talk, client, mcp_server, mock) -> None:
    with mcp_server() as one, mcp_server() as two:
        two.name = "other"
        chat = talk(**one.agent())
        chat.say('!tool mcp__tests__echo {"text": "x"}')
        both = {
            "mcp_servers": [one.declaration(), two.declaration()],
            "tools": [one.toolset("always_allow"), two.toolset("always_allow")],
        }
        updated = client.beta.sessions.update(chat.session.id, agent=both)
        assert [server.name for server in updated.agent.mcp_servers] == ["tests", "other"]
        assert [text(each) for each in results(chat.say('!tool mcp__other__echo {"text": "y"}'))] == ["y"]
        client.beta.sessions.update(
            chat.session.id, agent={"mcp_servers": [two.declaration()], "tools": [two.toolset(None)]}
        )
        events = chat.say(
            '!tool mcp__tests__echo {"text": "z"}', '!tool mcp__other__echo {"text": "z"}', reason="requires_action"
        )
        assert of(events, "agent.tool_use")[0]["evaluated_permission"] == "deny"
        assert of(events, "agent.mcp_tool_use")[0]["evaluated_permission"] == "ask"
        # What was asked for is answered, although its server is no longer the agent's.
        client.beta.sessions.update(chat.session.id, agent={"mcp_servers": [], "tools": []})
        (call,) = of(events, "agent.mcp_tool_use")
        (result,) = results(chat.go_on(confirm(call)))
        assert result["is_error"] and "no longer" in text(result)
        assert not any(name.startswith("mcp__") for name in offered(mock)[-1])
        assert len(two.calls()) == 1
        with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
            client.beta.sessions.update(chat.session.id, agent={"mcp_servers": [one.declaration()]})


def test_hosts_that_an_environment_must_allow(client, make, mcp_server) -> None:
    with mcp_server() as mcp:
        agent = make.agent(**mcp.agent())
        for networking, allowed in [
            ({"type": "unrestricted"}, True),
            ({"type": "limited"}, False),
            ({"type": "limited", "allowed_hosts": ["example.com"]}, False),
            ({"type": "limited", "allowed_hosts": [LOOPBACK]}, True),
            ({"type": "limited", "allow_mcp_servers": True}, True),
        ]:
            config = {"type": "cloud", "networking": networking}
            environment = client.beta.environments.create(name=f"{mcp.url} {json.dumps(networking)}", config=config)

            def create():
                return client.beta.sessions.create(agent=agent.id, environment_id=environment.id)

            if allowed:
                create()
                continue
            with pytest.raises(anthropic.BadRequestError, match="allow_mcp_servers"):
                create()
            # Without the server there is nothing to refuse.
            overrides = {"type": "agent_with_overrides", "id": agent.id, "mcp_servers": [], "tools": []}
            client.beta.sessions.create(agent=overrides, environment_id=environment.id)


def test_a_call_that_a_crash_cuts_off(mcp_server) -> None:
    """Nobody knows what became of it, so it is answered with an error and never made again."""
    server = process.start()
    try:
        with mcp_server() as mcp, anthropic.Anthropic(base_url=server.url, api_key=server.key) as client:
            agent = client.beta.agents.create(name="crash", model="mock-crash", **mcp.agent())
            environment = client.beta.environments.create(name="crash")
            session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
            message = {"type": "user.message", "content": [{"type": "text", "text": '!tool mcp__tests__wait {"name": "a"}'}]}
            client.beta.sessions.events.send(session.id, events=[message])
            mcp.wait_calls(1)
            server.crash()
            deadline = time.monotonic() + 60
            while client.beta.sessions.retrieve(session.id).status != "idle":
                assert time.monotonic() < deadline, client.beta.sessions.retrieve(session.id)
                time.sleep(0.05)
            events = [event.to_dict(mode="json") for event in client.beta.sessions.events.list(session.id)]
            (result,) = results(events)
            assert result["is_error"] and "not made again" in text(result)
            assert of(events, "session.status_idle")[-1]["stop_reason"] == {"type": "end_turn"}
            assert [call["name"] for call in mcp.calls()] == ["wait"]
            assert order.check(events) == []
    finally:
        server.stop()
