"""Vaults and credentials through the official client: what is secret goes in and never comes out."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone

import anthropic
import pytest

from support.registry import covers

SECRETS = [f"s3cret-{uuid.uuid4().hex}" for _ in range(4)]
VAULTS, CREDENTIALS = "beta.vaults", "beta.vaults.credentials"


def url() -> str:
    return f"https://{uuid.uuid4().hex}.example/mcp"


def bearer(**more):
    return {"type": "static_bearer", "mcp_server_url": url(), "token": SECRETS[0], **more}


def oauth(**more):
    refresh = {
        "client_id": "client",
        "refresh_token": SECRETS[1],
        "token_endpoint": "https://auth.example/token",
        "token_endpoint_auth": {"type": "client_secret_post", "client_secret": SECRETS[2]},
        "resource": "https://mcp.example",
        "scope": "read write",
    }
    expires = datetime.now(timezone.utc) + timedelta(days=300)
    return {"type": "mcp_oauth", "mcp_server_url": url(), "access_token": SECRETS[0], "expires_at": expires, "refresh": refresh, **more}


def variable(**more):
    return {
        "type": "environment_variable",
        "secret_name": f"KEY_{uuid.uuid4().hex}",
        "secret_value": SECRETS[3],
        "networking": {"type": "limited", "allowed_hosts": ["api.example.com", "*.example.org", "192.0.2.1"]},
        **more,
    }


@pytest.fixture
def vault(client):
    return client.beta.vaults.create(display_name="a vault")


def silent(*objects) -> None:
    """None of these has a secret in it."""
    text = "".join(each.to_json() for each in objects)
    assert not [secret for secret in SECRETS if secret in text]


@covers(*(f"{VAULTS}.{name}" for name in ("create", "retrieve", "update", "list", "delete", "archive")))
def test_a_vault_comes_and_goes(client) -> None:
    vaults = client.beta.vaults
    vault = vaults.create(display_name="Alice", metadata={"user": "u1", "plan": "free"})
    assert (vault.type, vault.display_name, vault.archived_at) == ("vault", "Alice", None)
    assert vault.id.startswith("vlt_01") and vault.created_at == vault.updated_at
    assert vaults.retrieve(vault.id) == vault
    updated = vaults.update(vault.id, display_name="Bob", metadata={"plan": None, "new": "x"})
    assert (updated.display_name, updated.metadata) == ("Bob", {"user": "u1", "new": "x"})
    assert vaults.update(vault.id, display_name=None, metadata=None) == updated
    second = vaults.create(display_name="second")
    assert vaults.list(limit=2).data == [second, updated]
    pages = vaults.list(limit=1)
    assert [each.id for _, each in zip(range(2), pages)] == [second.id, vault.id]

    archived = vaults.archive(vault.id)
    assert archived.archived_at is not None and vaults.archive(vault.id) == archived
    assert vaults.list(limit=1).data == [second]
    assert vaults.list(limit=2, include_archived=True).data == [second, archived]
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        vaults.update(vault.id, display_name="x")
    deleted = vaults.delete(vault.id)
    assert (deleted.id, deleted.type) == (vault.id, "vault_deleted")
    for call in (vaults.retrieve, vaults.archive, vaults.delete):
        with pytest.raises(anthropic.NotFoundError):
            call(vault.id)


@covers(*(f"{CREDENTIALS}.{name}" for name in ("create", "retrieve", "update", "list", "delete", "archive")))
def test_a_credential_comes_and_goes(client, vault) -> None:
    credentials = client.beta.vaults.credentials
    for auth, rotation in (
        (bearer(), {"type": "static_bearer", "token": SECRETS[1]}),
        (oauth(), {"type": "mcp_oauth", "refresh": {"scope": "", "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": SECRETS[3]}}}),
        (variable(), {"type": "environment_variable", "injection_location": {"body": False}}),
    ):  # fmt: skip
        credential = credentials.create(vault.id, auth=auth, display_name="one", metadata={"a": "1"})
        assert (credential.type, credential.vault_id, credential.display_name) == ("vault_credential", vault.id, "one")
        assert credential.id.startswith("vcrd_01") and credential.auth.type == auth["type"]
        assert credentials.retrieve(credential.id, vault_id=vault.id) == credential
        assert credentials.list(vault.id, limit=1).data == [credential]
        updated = credentials.update(credential.id, vault_id=vault.id, auth=rotation, display_name="two", metadata={"a": None})
        assert (updated.display_name, updated.metadata) == ("two", {}) and updated.updated_at > credential.updated_at

        with pytest.raises(anthropic.ConflictError) as taken:
            client.with_options(max_retries=2).beta.vaults.credentials.create(vault.id, auth=auth)
        assert taken.value.response.headers["x-should-retry"] == "false"
        assert taken.value.response.request.headers["x-stainless-retry-count"] == "0", "the client does not try again"

        archived = credentials.archive(credential.id, vault_id=vault.id)
        assert archived.archived_at is not None and archived.auth == updated.auth
        assert credentials.archive(credential.id, vault_id=vault.id) == archived
        with pytest.raises(anthropic.BadRequestError, match="archived"):
            credentials.update(credential.id, vault_id=vault.id, display_name="x")
        again = credentials.create(vault.id, auth=auth)
        listed = credentials.list(vault.id, include_archived=True).data
        assert listed[:2] == [again, archived] and archived not in credentials.list(vault.id).data
        deleted = credentials.delete(credential.id, vault_id=vault.id)
        assert (deleted.id, deleted.type) == (credential.id, "vault_credential_deleted")
        with pytest.raises(anthropic.NotFoundError):
            credentials.retrieve(credential.id, vault_id=vault.id)
        silent(credential, updated, archived, again)


def test_what_is_shown_of_each_kind(client, vault) -> None:
    create = client.beta.vaults.credentials.create
    sent = oauth()
    shown = create(vault.id, auth=sent).auth
    # Times are kept to the microsecond, as this one is.
    assert (shown.mcp_server_url, shown.expires_at) == (sent["mcp_server_url"], sent["expires_at"])
    refresh = shown.refresh
    assert (refresh.client_id, refresh.token_endpoint, refresh.token_endpoint_auth.type) == ("client", "https://auth.example/token", "client_secret_post")
    assert (refresh.resource, refresh.scope) == ("https://mcp.example", "read write")
    shown = create(vault.id, auth=oauth(refresh=None, expires_at=None)).auth
    assert (shown.refresh, shown.expires_at) == (None, None)
    sent = variable()
    shown = create(vault.id, auth=sent).auth
    assert (shown.secret_name, shown.networking.type) == (sent["secret_name"], "limited")
    assert shown.networking.allowed_hosts == sent["networking"]["allowed_hosts"]
    assert (shown.injection_location.header, shown.injection_location.body) == (True, True)
    sent = variable(networking={"type": "unrestricted"}, injection_location={"header": True})
    shown = create(vault.id, auth=sent).auth
    assert (shown.networking.type, shown.injection_location.header, shown.injection_location.body) == ("unrestricted", True, False)


def test_rotations_keep_what_they_do_not_name(client, vault) -> None:
    credentials = client.beta.vaults.credentials
    credential = credentials.create(vault.id, auth=oauth())

    def update(**auth):
        return credentials.update(credential.id, vault_id=vault.id, auth={"type": "mcp_oauth", **auth}).auth

    assert update(access_token=SECRETS[1]) == credential.auth, "a new token keeps the old expiry"
    later = datetime.now(timezone.utc) + timedelta(days=600)
    assert update(expires_at=later).expires_at == later
    other = {"type": "client_secret_basic", "client_secret": SECRETS[0]}
    assert update(refresh={"token_endpoint_auth": other}).refresh.token_endpoint_auth.type == "client_secret_post"
    assert update(refresh={"scope": ""}).refresh.scope is None
    for wrong in (
        {"type": "static_bearer", "token": "x"},
        {"type": "mcp_oauth", "mcp_server_url": "https://elsewhere.example"},
        {"type": "mcp_oauth", "expires_at": "2001-01-01T00:00:00Z"},
    ):
        with pytest.raises(anthropic.BadRequestError):
            credentials.update(credential.id, vault_id=vault.id, auth=wrong)


@covers(f"{CREDENTIALS}.mcp_oauth_validate")
def test_a_server_that_nobody_can_ask(client, vault) -> None:
    credentials = client.beta.vaults.credentials
    # An address that users' URLs may not reach.
    auth = oauth(mcp_server_url="http://127.0.0.1:1/mcp", refresh=None)
    credential = credentials.create(vault.id, auth=auth)
    found = credentials.mcp_oauth_validate(credential.id, vault_id=vault.id)
    assert (found.type, found.credential_id, found.vault_id) == ("vault_credential_validation", credential.id, vault.id)
    assert (found.status, found.has_refresh_token, found.refresh) == ("unknown", False, None)
    assert (found.mcp_probe.method, found.mcp_probe.http_response) == ("initialize", None)
    other = credentials.create(vault.id, auth=bearer())
    with pytest.raises(anthropic.BadRequestError, match="mcp_oauth"):
        credentials.mcp_oauth_validate(other.id, vault_id=vault.id)


def test_sessions_name_vaults_in_order(client, make, vault) -> None:
    vaults = client.beta.vaults
    other = vaults.create(display_name="other")
    session = make.session(vault_ids=[other.id, vault.id])
    assert session.vault_ids == [other.id, vault.id]
    vaults.archive(other.id)
    vaults.delete(vault.id)
    assert client.beta.sessions.retrieve(session.id).vault_ids == [other.id, vault.id]
    with pytest.raises(anthropic.BadRequestError, match="not yet supported"):
        client.beta.sessions.update(session.id, vault_ids=[other.id])
    for gone in (other, vault):
        with pytest.raises(anthropic.BadRequestError, match=r"vault_ids\[0\]"):
            make.session(vault_ids=[gone.id])
