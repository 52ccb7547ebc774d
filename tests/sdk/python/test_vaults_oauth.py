"""OAuth credentials: validated live, refreshed without a session noticing, and what reaches a running session."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any, Iterator

import anthropic
import pytest

from support.oauth import OAuth
from support.tail import open_sdk
from test_mcp import Talk, of, results, text

INVALID_GRANT = {"status": 400, "body": '{"error": "invalid_grant"}'}


@pytest.fixture(scope="module")
def oauth() -> Iterator[OAuth]:
    oauth = OAuth()
    yield oauth
    oauth.stop()


@pytest.fixture
def vault(client: anthropic.Anthropic) -> str:
    return client.beta.vaults.create(display_name="oauth").id


def add(client: anthropic.Anthropic, vault: str, auth: dict[str, Any]) -> str:
    return client.beta.vaults.credentials.create(vault, auth=auth).id


def test_a_credential_is_tried_where_it_is_used(client: anthropic.Anthropic, oauth: OAuth, vault: str) -> None:
    grant = oauth.grant(expires_in=3600)
    credential = add(client, vault, grant.auth())
    validate = lambda: client.beta.vaults.credentials.mcp_oauth_validate(credential, vault_id=vault)  # noqa: E731
    found = validate()
    assert (found.type, found.credential_id, found.vault_id) == ("vault_credential_validation", credential, vault)
    assert (found.status, found.has_refresh_token, found.mcp_probe, found.refresh) == ("valid", True, None, None)
    assert abs(datetime.now(timezone.utc) - found.validated_at) < timedelta(hours=1)

    grant.expire()
    found = validate()
    assert (found.status, found.mcp_probe, found.refresh.status, found.refresh.http_response) == ("valid", None, "succeeded", None)
    stored = client.beta.vaults.credentials.retrieve(credential, vault_id=vault)
    assert stored.auth.expires_at is not None, "the refresh was stored"

    grant.expire()
    grant.instead("token", INVALID_GRANT)
    found = validate()
    assert (found.status, found.mcp_probe.method, found.refresh.status) == ("invalid", "initialize", "failed")
    assert found.mcp_probe.http_response.status_code == 401
    response = found.refresh.http_response
    assert (response.status_code, response.content_type, response.body, response.body_truncated) == (
        400, "application/json", INVALID_GRANT["body"], False
    )

    with pytest.raises(anthropic.BadRequestError, match="static_bearer"):
        fixed = {"type": "static_bearer", "mcp_server_url": "https://a.example", "token": "t"}
        client.beta.vaults.credentials.mcp_oauth_validate(add(client, vault, fixed), vault_id=vault)
    with pytest.raises(anthropic.NotFoundError):
        client.beta.vaults.credentials.mcp_oauth_validate("vcrd_none", vault_id=vault)
    client.beta.vaults.credentials.archive(credential, vault_id=vault)
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        validate()


class Chat(Talk):
    """A session with vaults."""

    def __init__(self, client, make, vault: str, mcp) -> None:
        self.client, self.make = client, make
        self.session = make.session(make.agent(**mcp.agent()), vault_ids=[vault])
        self.tail = open_sdk(client, self.session.id)

    def echo(self, word: str) -> list[dict]:
        return self.say("!tool mcp__tests__echo " + json.dumps({"text": word}))


@pytest.fixture
def chat(client, make, vault):
    chats = []

    def start(mcp) -> Chat:
        chats.append(Chat(client, make, vault, mcp))
        return chats[-1]

    yield start
    for each in chats:
        each.tail.close()


def tokens(access: str, refresh: str) -> dict[str, Any]:
    body = {"access_token": access, "token_type": "Bearer", "expires_in": 3600, "refresh_token": refresh}
    return {"status": 200, "body": json.dumps(body)}


def unnoticed(events: list[dict], word: str) -> None:
    """The call went as if nothing had been."""
    (result,) = results(events)
    assert (text(result), result["is_error"]) == (word, False)
    assert not of(events, "session.error")


def failed(events: list[dict]) -> dict:
    (error,) = of(events, "session.error")
    assert error["error"]["type"] == "mcp_authentication_failed_error"
    assert error["error"]["mcp_server_name"] == "tests"
    return error["error"]


def test_a_token_expires_during_a_session_which_does_not_notice(client, oauth, vault, chat, mcp_server) -> None:
    with mcp_server(auth=True) as mcp:
        mcp.accept("token-1")
        grant = oauth.grant()
        credential = add(client, vault, grant.auth(mcp_server_url=mcp.url, access_token="token-1"))
        session = chat(mcp)
        unnoticed(session.echo("one"), "one")
        grant.instead("token", tokens("token-2", "refresh-2"))
        mcp.accept("token-2")  # and the other one has just expired
        unnoticed(session.echo("two"), "two")
        assert mcp.tokens() == ["token-1", "token-2"]
        (asked,) = grant.standing()["token_requests"]
        assert f"refresh_token={grant.first['refresh_token']}" in asked["body"]

        # What was given with it is used the next time.
        stored = client.beta.vaults.credentials.retrieve(credential, vault_id=vault)
        assert stored.auth.expires_at > datetime.now(timezone.utc) + timedelta(minutes=30)


def test_a_token_is_refreshed_before_it_expires(client, oauth, vault, chat, mcp_server) -> None:
    with mcp_server(auth=True) as mcp:
        mcp.accept("token-2")
        grant = oauth.grant()
        grant.instead("token", tokens("token-2", "refresh-2"))
        soon = (datetime.now(timezone.utc) + timedelta(seconds=20)).isoformat()
        add(client, vault, grant.auth(mcp_server_url=mcp.url, access_token="token-1", expires_at=soon))
        unnoticed(chat(mcp).echo("one"), "one")
        assert mcp.tokens() == ["token-2"], "the old one was never shown"
        assert len(grant.standing()["token_requests"]) == 1


def test_changes_of_a_client_reach_a_running_session(client, oauth, vault, chat, mcp_server) -> None:
    with mcp_server(auth=True) as mcp:
        mcp.accept("token-1", "by-hand")
        auth = {"type": "static_bearer", "mcp_server_url": mcp.url, "token": "token-1"}
        credential = add(client, vault, auth)
        session = chat(mcp)
        unnoticed(session.echo("one"), "one")
        rotated = {"type": "static_bearer", "token": "by-hand"}
        client.beta.vaults.credentials.update(credential, vault_id=vault, auth=rotated)
        unnoticed(session.echo("two"), "two")
        assert mcp.tokens() == ["token-1", "by-hand"]
        assert 401 not in [request["status"] for request in mcp.requests()], "it was seen at once"
        client.beta.vaults.credentials.archive(credential, vault_id=vault)
        failed(session.say("hello"))
        add(client, vault, auth)
        unnoticed(session.echo("three"), "three")
        client.beta.vaults.delete(vault)
        failed(session.say("hello"))


def test_a_grant_that_is_gone(client, oauth, vault, chat, mcp_server) -> None:
    with mcp_server(auth=True) as mcp:
        mcp.accept("token-2")
        grant = oauth.grant()
        grant.instead("token", INVALID_GRANT)
        credential = add(client, vault, grant.auth(mcp_server_url=mcp.url, access_token="token-1"))
        session = chat(mcp)
        failed(session.say("hello"))
        failed(session.say("hello again"))
        assert len(grant.standing()["token_requests"]) == 1, "it was asked for good"
        grant.instead("token", tokens("token-2", "refresh-3"))
        fresh = {"type": "mcp_oauth", "refresh": {"refresh_token": "refresh-2"}}
        client.beta.vaults.credentials.update(credential, vault_id=vault, auth=fresh)
        unnoticed(session.echo("one"), "one")
