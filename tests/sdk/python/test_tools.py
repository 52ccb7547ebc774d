"""Sessions that do something: the built-in tools in a sandbox, confirmations, custom tools, interrupts.

The scripted model calls what the directives in the message say; see the README of the mock crate.
"""

from __future__ import annotations

import base64
import time

import anthropic
import anyio
import pytest

from conftest import custom, toolset
from support.registry import covers
from support.tail import open_sdk

pytestmark = pytest.mark.docker

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Chat:
    """One session and its stream; `say` returns the results of the turn by call, in the order of the calls."""

    def __init__(self, client, make, tools) -> None:
        self.client, self.make = client, make
        self.session = make.session(tools=tools)
        self.tail = open_sdk(client, self.session.id)
        self.turns = 0

    def say(self, *lines: str) -> list[tuple[str, bool]]:
        start = self.tail.count()
        self.make.say(self.session, "\n".join(lines))
        self.tail.wait_idle(after=start, timeout=90)
        return self.results(start)

    def results(self, start: int = 0) -> list[tuple[str, bool]]:
        records = self.tail.records[start:]
        calls = [event["id"] for event in records if event["type"] == "agent.tool_use"]
        found = {event["tool_use_id"]: event for event in records if event["type"] == "agent.tool_result"}
        return [(text(found[each]), bool(found[each].get("is_error"))) for each in calls if each in found]


def text(result) -> str:
    return "".join(block.get("text", "") for block in result.get("content") or [])


@pytest.fixture
def chat(client, make):
    chats = []

    def start(*tools) -> Chat:
        chats.append(Chat(client, make, list(tools) or [toolset()]))
        return chats[-1]

    yield start
    for each in chats:
        each.tail.close()


def test_all_six_tools(chat) -> None:
    talk = chat()
    results = talk.say(
        r"!write notes/a.txt first line\nsecond line",
        "!then",
        "!read notes/a.txt",
        '!tool read {"file_path": "notes/a.txt", "view_range": [2, 2]}',
        "!then",
        '!tool edit {"file_path": "notes/a.txt", "old_string": "second", "new_string": "2nd"}',
        "!then",
        "!bash cat notes/a.txt; echo to stderr >&2",
        "!glob **/*.txt",
        "!grep 2nd notes",
    )
    write, whole, part, edit, bash, glob, grep = results
    assert not any(is_error for _, is_error in results), results
    assert write[0].startswith("wrote 22 bytes to ") and "a.txt" in write[0]
    assert whole[0] == "first line\nsecond line" and part[0].rstrip("\n") == "second line"
    assert edit[0].startswith("edited ") and "1 replacement" in edit[0]
    assert bash[0].rstrip("\n") == "first line\n2nd lineto stderr"
    assert glob[0].strip().endswith("notes/a.txt")
    assert grep[0].strip().endswith("a.txt:2:2nd line")


def test_the_shell_persists(chat) -> None:
    talk = chat()
    assert talk.say("!bash mkdir -p d && cd d && export NAME=value")[0] == ("(no output)", False)
    assert talk.say("!bash pwd; echo $NAME")[0][0].rstrip("\n").endswith("/d\nvalue")
    assert talk.say('!tool bash {"restart": true}')[0] == ("bash session restarted", False)
    assert "value" not in talk.say("!bash pwd; echo $NAME")[0][0]


def test_failures_are_results(chat) -> None:
    talk = chat()
    for line, fragment in [
        ("!bash exit_code() { return 3; }; exit_code", "3"),
        ("!bash echo oops; false", "oops"),
        ("!read nowhere.txt", "no such file"),
        ("!read .", "directory"),
        ('!tool edit {"file_path": "nowhere.txt", "old_string": "a", "new_string": "b"}', "no such file"),
        ("!grep ( .", ""),
        ("!tool bash {}", "command"),
        ("!tool read {}", "file_path"),
        ('!tool bash {"command": "sleep 60", "timeout_ms": 300}', "time"),
    ]:
        ((found, is_error),) = talk.say(line)
        assert is_error and fragment in found.lower(), (line, found)
    assert talk.say("!bash echo alive")[0][0].rstrip().endswith("alive")
    assert talk.say("!glob *.nothing")[0] == ("no matches", False)
    assert talk.say("!grep zzz_nothing .")[0] == ("no matches", False)


def test_unknown_and_disabled_tools_are_refused_to_the_model(chat, client) -> None:
    talk = chat({**toolset(), "configs": [{"name": "write", "enabled": False}]})
    for line in ("!write a.txt x", "!tool browser {}"):
        ((_, is_error),) = talk.say(line)
        assert is_error
    denied = client.beta.sessions.events.list(talk.session.id, types=["agent.tool_use"])
    assert [event.evaluated_permission for event in denied] == ["deny", "deny"]
    assert "no matches" in talk.say("!glob a.txt")[0][0]


def test_disabled_tools_are_not_offered(chat, mock) -> None:
    talk = chat({**toolset(), "default_config": {"enabled": False}, "configs": [{"name": "bash", "enabled": True}]})
    talk.say("!bash true")
    assert [tool["name"] for tool in mock.body(mock.requests()[0])["tools"]] == ["bash"]


def test_images_come_as_images(chat, mock) -> None:
    talk = chat()
    talk.say(f"!bash echo {PNG} | base64 -d > dot.png")
    start = talk.tail.count()
    talk.say("!read dot.png")
    (result,) = [event for event in talk.tail.records[start:] if event["type"] == "agent.tool_result"]
    (block,) = result["content"]
    assert block["type"] == "image" and block["source"]["media_type"] == "image/png"
    assert base64.b64decode(block["source"]["data"]) == base64.b64decode(PNG)
    assert PNG in mock.requests()[-1]["body"], "the model sees it"


def test_large_output_goes_to_a_file(chat) -> None:
    talk = chat()
    ((found, is_error),) = talk.say("!bash seq 1 40000")
    assert not is_error and len(found) < 200_000
    if "/mnt/session/tool-outputs/" in found:
        path = found[found.index("/mnt/session/tool-outputs/") :].split()[0].rstrip(".,)`")
        assert talk.say(f"!bash wc -l < {path}; tail -n 1 {path}")[0][0].split()[-1] == "40000"
    else:
        assert "[output truncated]" in found


def test_binary_output_survives(chat) -> None:
    talk = chat()
    ((found, _),) = talk.say(r"!bash printf 'a\000b\377c\342\202\254'")
    assert found.startswith("a\0b") and found.endswith("c\u20ac")


def test_the_sandbox_is_the_documented_one(chat) -> None:
    talk = chat()
    ((found, is_error),) = talk.say("!bash pwd; id -u; python3 --version; node --version; git --version; rg --version | head -n 1; jq --version; env")
    assert not is_error, found
    lines = found.splitlines()
    assert lines[0] == "/workspace"
    assert "ANTHROPIC" not in found and "SELFSAME" not in found, "nothing of the server's is inside"


def test_sessions_share_no_files(chat) -> None:
    first, second = chat(), chat()
    first.say("!write secret.txt mine")
    assert second.say("!glob **/secret.txt")[0] == ("no matches", False)


def test_confirmation_allow_and_deny(client, make, mock) -> None:
    session = make.session(tools=[toolset("always_ask")])
    with open_sdk(client, session.id) as tail:
        make.say(session, "!bash echo allowed > a.txt\n!bash echo denied > b.txt\n!then\n!bash ls")
        first, second = tail.wait_idle("requires_action", timeout=60)["stop_reason"]["event_ids"]
        make.send(
            session,
            {"type": "user.tool_confirmation", "tool_use_id": first, "result": "allow"},
            {"type": "user.tool_confirmation", "tool_use_id": second, "result": "deny", "deny_message": "leave it"},
        )
        (third,) = tail.wait_idle("requires_action", count=2, timeout=60)["stop_reason"]["event_ids"]
        make.send(session, {"type": "user.tool_confirmation", "tool_use_id": third, "result": "allow"})
        tail.wait_idle("end_turn", timeout=60)
        results = {event["tool_use_id"]: event for event in tail.records if event["type"] == "agent.tool_result"}
    assert not results[first].get("is_error")
    assert results[second]["is_error"] and "leave it" in text(results[second])
    assert text(results[third]).split() == ["a.txt"]


def test_policies_by_tool(client, make) -> None:
    session = make.session(tools=[toolset("always_allow", write="always_ask")])
    with open_sdk(client, session.id) as tail:
        make.say(session, "!bash echo free\n!write a.txt x")
        stop = tail.wait_idle("requires_action", timeout=60)["stop_reason"]
        calls = {event["id"]: event for event in tail.records if event["type"] == "agent.tool_use"}
        assert [calls[each]["name"] for each in stop["event_ids"]] == ["write"]
        assert {call["name"]: call["evaluated_permission"] for call in calls.values()} == {"bash": "allow", "write": "ask"}
        make.send(session, {"type": "user.tool_confirmation", "tool_use_id": stop["event_ids"][0], "result": "allow"})
        tail.wait_idle("end_turn", timeout=60)


def test_an_answer_before_the_pause_spares_it(client, make, mock) -> None:
    """The call is on the stream before the session is idle; whoever answers at once never sees a pause."""
    gate = "flag"
    session = make.session(tools=[toolset("always_allow", write="always_ask")])
    with open_sdk(client, session.id) as tail:
        make.say(session, f"!bash while [ ! -e {gate} ]; do sleep 0.05; done\n!write {gate} x\n!glob *")
        call = tail.wait(lambda event: event["type"] == "agent.tool_use" and event["name"] == "write", timeout=60)
        tail.wait_type("span.model_request_end")
        make.send(session, {"type": "user.tool_confirmation", "tool_use_id": call["id"], "result": "deny"})
        tail.wait(lambda event: event["type"] == "user.tool_confirmation" and event["processed_at"] is not None)
        make.send(session, {"type": "user.interrupt"})
        tail.wait_idle("end_turn", timeout=60)
        assert not [event for event in tail.records if "requires_action" in str(event.get("stop_reason"))]


def test_interrupt_kills_the_command_and_its_children(chat, make) -> None:
    talk = chat()
    start = talk.tail.count()
    make.say(talk.session, "!bash sh -c 'echo $$ > pid; exec sleep 300' & sleep 300")
    talk.tail.wait_type("span.model_request_end", after=start, timeout=60)
    # The command is known to run once its file is there: ask through a second session's eyes is impossible,
    # so the interrupt may come at any point; either way nothing is left running afterwards.
    make.send(talk.session, {"type": "user.interrupt"})
    talk.tail.wait_idle("end_turn", after=start, timeout=60)
    ((found, is_error),) = talk.results(start)
    assert is_error, found
    ((left, _),) = talk.say("!bash sleep 0; ps -eo args 2>/dev/null | grep -c '[s]leep 300' || true")
    assert left.split()[-1] == "0"


def test_a_running_tool_keeps_the_session_running(client, make) -> None:
    session = make.session(tools=[toolset()])
    with open_sdk(client, session.id) as tail:
        make.say(session, "!bash sleep 600")
        tail.wait_type("span.model_request_end", timeout=60)
        assert client.beta.sessions.retrieve(session.id).status == "running"
        with pytest.raises(anthropic.BadRequestError, match="running"):
            client.beta.sessions.delete(session.id)
        (queued,) = make.say(session, "afterwards").data
        make.send(session, {"type": "user.interrupt"})
        tail.wait(lambda event: event.get("id") == queued.id and event["processed_at"] is not None, timeout=60)
        deadline = time.monotonic() + 30
        while client.beta.sessions.retrieve(session.id).status != "idle":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kinds = [event["type"] for event in tail.records]
        assert kinds.count("session.status_idle") == 2, "the interrupt ends one turn, the queued message has its own"


@covers("beta.sessions.events.tool_runner")
def test_the_sdks_tool_runner_answers_custom_tools(server, client, make, mock) -> None:
    """The official helper: attaches, reconciles, runs our function, posts the result."""
    asked: list[str] = []

    @anthropic.beta_async_tool
    async def lookup(key: str) -> str:
        """Looks something up."""
        asked.append(key)
        return f"value of {key}"

    session = make.session(tools=[custom()])

    async def run() -> list[str]:
        names = []
        async with anthropic.AsyncAnthropic(
            base_url=server.url, api_key=server.key, timeout=30, _strict_response_validation=True
        ) as remote:
            with anyio.fail_after(60):
                await remote.beta.sessions.events.send(
                    session.id,
                    events=[{"type": "user.message", "content": [{"type": "text", "text": '!tool lookup {"key": "k"}'}]}],
                )
                async for call in remote.beta.sessions.events.tool_runner(session.id, tools=[lookup], max_idle=0.2):
                    names.append(call.name)
        return names

    assert anyio.run(run) == ["lookup"] and asked == ["k"]
    assert "value of k" in mock.requests()[-1]["body"]
    results = list(client.beta.sessions.events.list(session.id, types=["user.custom_tool_result"]))
    assert len(results) == 1 and client.beta.sessions.retrieve(session.id).status == "idle"


def test_files_survive_between_turns_and_cannot_be_seen_from_the_environment(chat) -> None:
    talk = chat()
    talk.say("!write keep.txt here")
    assert talk.say("!read keep.txt")[0] == ("here", False)
