"""Every refusal of the vaults' tables."""

from __future__ import annotations

import uuid

import pytest

from support.cases import Case, refused, send

ONES = "1" * 22
VAULT = "/v1/vaults/{vault}"
LIST = f"{VAULT}/credentials"
OWN = LIST + "/{bearer}"
OAUTH = LIST + "/{oauth}"
NONE = LIST + "/{none}"
VARIABLE = LIST + "/{variable}"
REFRESH = {
    "client_id": "c",
    "refresh_token": "r",
    "token_endpoint": "https://auth.example/token",
    "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "s"},
}


def bearer(**more) -> dict:
    return {"auth": {"type": "static_bearer", "mcp_server_url": "https://{tag}.example/new", "token": "t", **more}}


def oauth(**more) -> dict:
    return {"auth": {"type": "mcp_oauth", "mcp_server_url": "https://{tag}.example/new", "access_token": "t", **more}}


def refresh(**more) -> dict:
    return oauth(refresh={**REFRESH, **more})


def variable(**more) -> dict:
    networking = {"type": "unrestricted"}
    return {"auth": {"type": "environment_variable", "secret_name": "NEW", "secret_value": "v", "networking": networking, **more}}


def hosts(*hosts: str) -> dict:
    return variable(networking={"type": "limited", "allowed_hosts": hosts})


def update(kind: str, **more) -> dict:
    return {"auth": {"type": kind, **more}}


CASES = [
    Case("vault without a name", path="/v1/vaults", body={}, fragment="display_name"),
    Case("vault with an empty name", path="/v1/vaults", body={"display_name": ""}, fragment="display_name"),
    Case("vault with a long name", path="/v1/vaults", body={"display_name": "x" * 256}, fragment="display_name"),
    Case("vault with too much metadata", path="/v1/vaults", body={"display_name": "x", "metadata": {f"k{n}": "v" for n in range(17)}}, fragment="metadata", code="invalid_metadata"),
    Case("vault with more", path="/v1/vaults", body={"display_name": "x", "owner": "y"}, fragment="owner"),
    Case("vault unknown", "GET", f"/v1/vaults/vlt_01{ONES}", status=404, fragment="was not found"),
    Case("vault of another kind", "GET", f"/v1/vaults/agent_01{ONES}", status=404),
    Case("vault renamed to nothing", path=VAULT, body={"display_name": ""}, fragment="display_name"),
    Case("vaults over the limit", "GET", "/v1/vaults", query="limit=101", fragment="between 1 and 100"),
    Case("vaults of limit 0", "GET", "/v1/vaults", query="limit=0", fragment="between 1 and 100"),
    Case("vaults by a cursor of nothing", "GET", "/v1/vaults", query="page=x", fragment="page"),
    Case("vaults by name", "GET", "/v1/vaults", query="name=x", fragment="name"),
    Case("archived vault renamed", path="/v1/vaults/{archived}", body={"display_name": "x"}, fragment="archived", code="vault_archived"),
    Case("credential of an archived vault", path="/v1/vaults/{archived}/credentials", body=bearer(), fragment="archived", code="vault_archived"),
    Case("credential of an unknown vault", path=f"/v1/vaults/vlt_01{ONES}/credentials", body=bearer(), status=404),
    Case("credential of another vault", "GET", "/v1/vaults/{archived}/credentials/{bearer}", status=404),
    Case("credential unknown", "GET", f"{LIST}/vcrd_01{ONES}", status=404),
    Case("credential without auth", path=LIST, body={}, fragment="auth"),
    Case("auth null", path=LIST, body={"auth": None}, fragment="auth"),
    Case("auth of an unknown type", path=LIST, body={"auth": {"type": "basic"}}, fragment=("auth", "basic")),
    Case("display_name long", path=LIST, body={**bearer(), "display_name": "x" * 256}, fragment="display_name"),
    Case("token missing", path=LIST, body={"auth": {"type": "static_bearer", "mcp_server_url": "https://a.example"}}, fragment="token"),
    Case("token empty", path=LIST, body=bearer(token=""), fragment="auth.token"),
    Case("token long", path=LIST, body=bearer(token="t" * 16385), fragment="auth.token"),
    Case("token with a header", path=LIST, body=bearer(header="x"), fragment="header"),
    Case("URL of another scheme", path=LIST, body=bearer(mcp_server_url="ws://a.example"), fragment="auth.mcp_server_url"),
    Case("URL with a password", path=LIST, body=bearer(mcp_server_url="https://u:p@a.example"), fragment="auth.mcp_server_url"),
    Case("URL taken", path=LIST, body=bearer(mcp_server_url="HTTPS://{tag}.EXAMPLE:443/mcp/"), status=409, fragment="mcp_server_url", no_retry=True),
    Case("URL taken by another kind", path=LIST, body=oauth(mcp_server_url="https://{tag}.example/mcp"), status=409, fragment="mcp_server_url", no_retry=True),
    Case("name taken", path=LIST, body=variable(secret_name="TAKEN"), status=409, fragment="secret_name", no_retry=True),
    Case("expired", path=LIST, body=oauth(expires_at="2001-01-01T00:00:00Z"), fragment="auth.expires_at"),
    Case("expires at some time", path=LIST, body=oauth(expires_at="soon"), fragment="expires_at"),
    Case("refresh without an endpoint", path=LIST, body=oauth(refresh={"client_id": "c", "refresh_token": "r"}), fragment="token_endpoint"),
    Case("refresh at no URL", path=LIST, body=refresh(token_endpoint="token"), fragment="auth.refresh.token_endpoint"),
    Case("refresh without a secret", path=LIST, body=refresh(token_endpoint_auth={"type": "client_secret_post"}), fragment="client_secret"),
    Case("refresh with a secret for nobody", path=LIST, body=refresh(token_endpoint_auth={"type": "none", "client_secret": "s"}), fragment="client_secret"),
    Case("refresh authenticated somehow", path=LIST, body=refresh(token_endpoint_auth={"type": "jwt"}), fragment="jwt"),
    Case("name of a digit", path=LIST, body=variable(secret_name="1X"), fragment="auth.secret_name"),
    Case("name with a dash", path=LIST, body=variable(secret_name="A-B"), fragment="auth.secret_name"),
    Case("name long", path=LIST, body=variable(secret_name="A" * 256), fragment="auth.secret_name"),
    Case("no networking", path=LIST, body={"auth": {"type": "environment_variable", "secret_name": "NEW", "secret_value": "v"}}, fragment="networking"),
    Case("host with a scheme", path=LIST, body=hosts("https://a.example"), fragment="allowed_hosts[0]"),
    Case("host with a port", path=LIST, body=hosts("a.example", "b.example:80"), fragment="allowed_hosts[1]"),
    Case("host of IPv6", path=LIST, body=hosts("::1"), fragment="allowed_hosts[0]"),
    Case("hosts, too many", path=LIST, body=hosts(*(f"h{n}.example" for n in range(17))), fragment="16"),
    Case("location null", path=LIST, body=variable(injection_location=None), fragment="omit"),
    Case("location header null", path=LIST, body=variable(injection_location={"header": None}), fragment="omit"),
    Case("location nowhere", path=LIST, body=variable(injection_location={}), fragment="must be true"),
    Case("update of the kind", path=OWN, body=update("mcp_oauth"), fragment="auth.type"),
    Case("update without a kind", path=OWN, body={"auth": {"token": "x"}}, fragment="type"),
    Case("update of the URL", path=OWN, body=update("static_bearer", mcp_server_url="https://b.example"), fragment="cannot be changed"),
    Case("update of the name", path=VARIABLE, body=update("environment_variable", secret_name="OTHER"), fragment="cannot be changed"),
    Case("update of the client", path=OAUTH, body=update("mcp_oauth", refresh={"client_id": "d"}), fragment="auth.refresh.client_id"),
    Case("update of the endpoint", path=OAUTH, body=update("mcp_oauth", refresh={"token_endpoint": "https://b.example"}), fragment="auth.refresh.token_endpoint"),
    Case("update to an expired one", path=OAUTH, body=update("mcp_oauth", expires_at="2001-01-01T00:00:00Z"), fragment="auth.expires_at"),
    Case("update to no authentication", path=OAUTH, body=update("mcp_oauth", refresh={"token_endpoint_auth": {"type": "none"}}), fragment="none"),
    Case("update of no refresh", path=NONE, body=update("mcp_oauth", refresh={"refresh_token": "r"}), fragment="auth.refresh"),
    Case("update of the location to null", path=VARIABLE, body=update("environment_variable", injection_location=None), fragment="omit"),
    Case("update of the location to nowhere", path=VARIABLE, body=update("environment_variable", injection_location={"header": False, "body": False}), fragment="must be true"),
    Case("update of an empty token", path=OWN, body=update("static_bearer", token=""), fragment="auth.token"),
    Case("update to an empty name", path=OWN, body={"display_name": ""}, fragment="display_name"),
    Case("update with a secret beside", path=OWN, body={"token": "x"}, fragment="token"),
    Case("update of an unknown one", path=f"{LIST}/vcrd_01{ONES}", body={}, status=404),
    Case("archive of an unknown one", path=f"{LIST}/vcrd_01{ONES}/archive", status=404),
    Case("delete of an unknown one", "DELETE", f"{LIST}/vcrd_01{ONES}", status=404),
    Case("credentials over the limit", "GET", LIST, query="limit=101", fragment="between 1 and 100"),
    Case("credentials by type", "GET", LIST, query="type=mcp_oauth", fragment="type"),
    Case("without the beta header", "GET", VAULT, headers={"anthropic-beta": "other-2026-01-01"}, status=404),
]  # fmt: skip


@pytest.fixture
def names(raw) -> dict[str, str]:
    def post(path: str, **body) -> str:
        response = raw.post(path, json=body or None)
        assert response.status_code == 200, response.text
        return response.json()["id"]

    tag = f"t{uuid.uuid4().hex}"
    vault, archived = (post("/v1/vaults", display_name=name) for name in ("one", "two"))
    post(f"/v1/vaults/{archived}/archive")

    def credential(body: dict, **more) -> str:
        return post(f"/v1/vaults/{vault}/credentials", auth={**body["auth"], **more})

    return {
        "tag": tag,
        "vault": vault,
        "archived": archived,
        "bearer": credential(bearer(), mcp_server_url=f"https://{tag}.example/mcp"),
        "oauth": credential(refresh(), mcp_server_url=f"https://{tag}.example/oauth"),
        "none": credential(oauth(), mcp_server_url=f"https://{tag}.example/none"),
        "variable": credential(variable(), secret_name="TAKEN"),
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(raw, names, case) -> None:
    def look() -> list[str]:
        vaults = [f"/v1/vaults/{names[each]}{more}" for each in ("vault", "archived") for more in ("", "/credentials?include_archived=true")]
        return [raw.get(path).text for path in vaults]

    before = look()
    refused(send(raw, case, names), case, names)
    assert look() == before


def test_a_vault_is_full_at_twenty(raw, names) -> None:
    path = f"/v1/vaults/{names['vault']}/credentials"
    made = [raw.post(path, json=variable(secret_name=f"V{number}")).status_code for number in range(16)]
    assert made == [200] * 16
    refused(raw.post(path, json=variable()), Case("full", fragment=("20", "archive")))
    assert raw.post(f"{path}/{names['variable']}/archive").status_code == 200
    assert raw.post(path, json=variable()).status_code == 200
