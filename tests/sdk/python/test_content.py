"""Files and addresses in messages, and the web tools, as the official client sends and reads them."""

from __future__ import annotations

import base64

import anthropic
import pytest
from anthropic.types.beta.sessions import BetaManagedAgentsAgentToolResultEvent

from conftest import custom
from support.tail import open_sdk

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
WEB = {
    "type": "agent_toolset_20260401",
    "default_config": {"enabled": False},
    "configs": [{"name": "web_fetch", "enabled": True}, {"name": "web_search", "enabled": True}],
}


def turn(client, make, session, *content):
    """Sends a message and returns the events of the turn, read strictly."""
    tail = open_sdk(client, session.id)
    try:
        make.send(session, {"type": "user.message", "content": list(content)})
        tail.wait_idle()
    finally:
        tail.close()
    return list(client.beta.sessions.events.list(session.id))


def upload(client, name: str, content: bytes, mime: str):
    return client.beta.files.upload(file=(name, content, mime))


def test_files_and_addresses_in_messages(client, make, mock):
    mock.answer("seen")
    session = make.session(tools=[custom()])
    image = upload(client, "dot.png", PNG, "image/png")
    notes = upload(client, "notes.txt", b"remember the milk", "text/plain")
    content = [
        {"type": "image", "source": {"type": "file", "file_id": image.id}},
        {"type": "document", "title": "Notes", "source": {"type": "file", "file_id": notes.id}},
        {"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/dot.png"}},
    ]
    events = turn(client, make, session, *content)
    sent = next(event for event in events if event.type == "user.message")
    assert sent.content[0].source.type == "file" and sent.content[0].source.file_id == image.id
    assert sent.content[1].source.file_id == notes.id and sent.content[1].title == "Notes"
    assert sent.content[2].source.url == "http://10.0.0.1/dot.png"
    assert any(event.type == "agent.message" for event in events), "an address that cannot be read fails no turn"


def test_files_that_do_not_fit(client, make, mock):
    mock.answer("never")
    session = make.session(tools=[custom()])
    image = upload(client, "dot.png", PNG, "image/png")
    gone = upload(client, "gone.txt", b"x", "text/plain")
    client.beta.files.delete(gone.id)
    for block, file, words in [
        ("document", image, "use an `image` block"),
        ("image", gone, "there is no file"),
        ("document", gone, "there is no file"),
    ]:
        with pytest.raises(anthropic.BadRequestError, match=words):
            make.send(
                session,
                {"type": "user.message", "content": [{"type": block, "source": {"type": "file", "file_id": file.id}}]},
            )
    assert list(client.beta.sessions.events.list(session.id)) == []


def test_web_tools_answer_in_words_when_they_cannot(client, make):
    session = make.session(tools=[WEB])
    events = turn(
        client,
        make,
        session,
        {"type": "text", "text": '!tool web_fetch {"url": "http://10.0.0.1/"}\n!tool web_search {"query": "x"}'},
    )
    results = [event for event in events if event.type == "agent.tool_result"]
    assert [result.is_error for result in results] == [True, True]
    texts = " ".join(result.content[0].text for result in results)
    assert "url_not_allowed" in texts and "web.search_backend" in texts
    usage = client.beta.sessions.retrieve(session.id).usage
    assert usage.server_tool_use.web_search_requests == 0
    assert usage.server_tool_use.web_fetch_requests == 0


def test_search_results_are_what_the_client_reads():
    """The very block that the server's own tests see, read by the client's type."""
    event = {
        "type": "agent.tool_result", "id": "sevt_1", "tool_use_id": "sevt_0", "processed_at": "2026-01-01T00:00:00Z", "is_error": False,
        "content": [{
            "type": "search_result", "source": "https://example.com/", "title": "T",
            "content": [{"type": "text", "text": "s"}], "citations": {"enabled": False},
        }],
    }  # fmt: skip
    read = BetaManagedAgentsAgentToolResultEvent.model_validate(event, strict=False)
    assert read.content[0].type == "search_result" and read.content[0].citations.enabled is False
