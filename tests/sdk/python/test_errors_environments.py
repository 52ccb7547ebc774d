"""Every refusal of the environments' tables. Nothing is stored, and an update changes nothing."""

from __future__ import annotations

import json
import uuid

import pytest

from support.cases import Case, refused, send

LATER = (400, 501)
NOWHERE = "/v1/environments/env_011111111111111111111111"


def networking(**fields) -> dict:
    return {"config": {"type": "cloud", "networking": fields}}


def packages(networking=None, **fields) -> dict:
    config = {"type": "cloud", "packages": fields}
    if networking is not None:
        config["networking"] = networking
    return {"config": config}


FIELDS: dict[str, tuple[dict, str | tuple[str, ...], str | None]] = {
    "name empty": ({"name": ""}, "name", None),
    "name long": ({"name": "n" * 257}, ("name", "256"), None),
    "name number": ({"name": 1}, "name", None),
    "name NUL": ({"name": "a\0b"}, "name", None),
    "description long": ({"description": "d" * 1025}, ("description", "1024"), None),
    "description number": ({"description": 1}, "description", None),
    "unknown field": ({"image": "debian"}, "image", None),
    "metadata too many": ({"metadata": {f"k{n}": "v" for n in range(17)}}, "metadata", "invalid_metadata"),
    "metadata long key": ({"metadata": {"k" * 65: "v"}}, "metadata", "invalid_metadata"),
    "metadata long value": ({"metadata": {"k": "v" * 513}}, "metadata", "invalid_metadata"),
    "scope account": ({"scope": "account"}, "scope", None),
    "scope unknown": ({"scope": "galaxy"}, "scope", None),
    "config text": ({"config": "cloud"}, "config", None),
    "config without a type": ({"config": {}}, "type", None),
    "config of an unknown type": ({"config": {"type": "moon"}}, "type", None),
    "config with an unknown field": ({"config": {"type": "cloud", "memory": "8g"}}, "memory", None),
    "networking text": (networking() | {"config": {"type": "cloud", "networking": "open"}}, "networking", None),
    "networking without a type": (networking(allowed_hosts=[]), "type", None),
    "networking of an unknown type": (networking(type="vpn"), "type", None),
    "unrestricted with hosts": (networking(type="unrestricted", allowed_hosts=["a.com"]), "allowed_hosts", None),
    "hosts text": (networking(type="limited", allowed_hosts="a.com"), "allowed_hosts", None),
    "host with a scheme": (networking(type="limited", allowed_hosts=["https://a.com"]), "allowed_hosts", None),
    "host with a port": (networking(type="limited", allowed_hosts=["ok.com", "a.com:443"]), "allowed_hosts", None),
    "host with a path": (networking(type="limited", allowed_hosts=["a.com/x"]), "allowed_hosts", None),
    "host empty": (networking(type="limited", allowed_hosts=[""]), "allowed_hosts", None),
    "host with a blank": (networking(type="limited", allowed_hosts=["a b.com"]), "allowed_hosts", None),
    "host with an inner wildcard": (networking(type="limited", allowed_hosts=["a.*.com"]), "allowed_hosts", None),
    "flag as text": (networking(type="limited", allow_mcp_servers="yes"), "allow_mcp_servers", None),
    "packages text": ({"config": {"type": "cloud", "packages": "pip"}}, "packages", None),
    "packages of an unknown manager": (packages(brew=["x"]), "brew", None),
    "packages of numbers": (packages(pip=[1]), "pip", None),
    "packages as text": (packages(pip="requests"), "pip", None),
    "packages of another type": (packages(type="bundle"), "type", None),
    "packages behind a wall": (
        packages(networking={"type": "limited"}, pip=["requests"]), "allow_package_managers", None,
    ),
    "packages behind an explicit wall": (
        packages(networking={"type": "limited", "allow_package_managers": False}, apt=["jq"]), "allow_package_managers", None,
    ),
}  # fmt: skip


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


@pytest.mark.parametrize("name", FIELDS)
def test_create(raw, tag, name) -> None:
    fields, fragment, code = FIELDS[name]
    body = {"name": tag, **({} if "description" in fields else {"description": tag}), **fields}
    refused(raw.post("/v1/environments", json=body), Case(name, fragment=fragment, code=code))
    listed = raw.get("/v1/environments", params={"limit": 1000, "include_archived": "true"}).json()["data"]
    assert tag not in json.dumps(listed)


@pytest.mark.parametrize("name", FIELDS)
def test_update(raw, tag, name) -> None:
    fields, fragment, code = FIELDS[name]
    environment = raw.post("/v1/environments", json={"name": tag}).json()
    path = f"/v1/environments/{environment['id']}"
    body = {**({} if "description" in fields else {"description": "changed"}), **fields}
    refused(raw.post(path, json=body), Case(name, fragment=fragment, code=code))
    assert raw.get(path).json() == environment


def test_name_is_required(raw, tag) -> None:
    refused(raw.post("/v1/environments", json={"description": tag}), Case("name", fragment="name"))
    refused(raw.post("/v1/environments", json={"description": tag, "name": None}), Case("name", fragment="name"))
    assert tag not in raw.get("/v1/environments", params={"limit": 1000}).text


CASES = [
    Case("self-hosted with more", path="/v1/environments", body={"name": "{tag} x", "config": {"type": "self_hosted", "networking": {"type": "unrestricted"}}}, fragment="networking"),
    Case("name taken", path="/v1/environments", body={"name": "{tag}"}, status=409, fragment="name", no_retry=True),
    Case("rename to a taken name", path="/v1/environments/{second}", body={"name": "{tag}"}, status=409, fragment="name", no_retry=True),
    Case("another type", path="/v1/environments/{environment}", body={"config": {"type": "self_hosted"}}, code="invalid_config_type_change"),
    Case("update archived", path="/v1/environments/{archived}", body={"name": "{tag} y"}, fragment="archived", code="environment_archived"),
    Case("merged packages rule", path="/v1/environments/{packed}", body={"config": {"type": "cloud", "networking": {"type": "limited"}}}, fragment="allow_package_managers"),
    Case("merged metadata", path="/v1/environments/{environment}", body={"metadata": {f"n{n}": "v" for n in range(16)}}, fragment="metadata", code="invalid_metadata"),
    Case("update unknown", path=NOWHERE, body={"name": "x"}, status=404),
    Case("retrieve unknown", "GET", NOWHERE, status=404),
    Case("delete unknown", "DELETE", NOWHERE, status=404),
    Case("archive unknown", path=f"{NOWHERE}/archive", status=404),
    Case("list with after_id", "GET", "/v1/environments", query="after_id=env_1", fragment="after_id"),
    Case("list with times", "GET", "/v1/environments", query="created_at[gte]=2026-01-01T00:00:00Z", fragment="created_at"),
    Case("list over the limit", "GET", "/v1/environments", query="limit=1001", fragment="limit"),
    Case("delete in use", "DELETE", "/v1/environments/{used}", status=409, fragment="session", no_retry=True),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(raw, make, tag, case) -> None:
    def create(name: str, **fields) -> str:
        response = raw.post("/v1/environments", json={"name": name, **fields})
        assert response.status_code == 200, response.text
        return response.json()["id"]

    names = {
        "tag": tag,
        "environment": create(tag, metadata={"a": "1"}),
        "second": create(f"{tag} 2"),
        "archived": create(f"{tag} 3"),
        "packed": create(f"{tag} 4", config={"type": "cloud", "packages": {"pip": ["requests"]}}),
        "used": make.environment_id,
    }
    if "{used}" in case.path:
        make.session()
    raw.post(f"/v1/environments/{names['archived']}/archive")
    own = [identity for name, identity in names.items() if name != "tag"]
    before = [raw.get(f"/v1/environments/{each}").json() for each in own]
    refused(send(raw, case, names), case, names)
    assert before == [raw.get(f"/v1/environments/{each}").json() for each in own]
    listed = raw.get("/v1/environments", params={"limit": 1000, "include_archived": "true"}).json()["data"]
    assert sum(each["name"].startswith(tag) for each in listed) == 4


def test_self_hosted_waits_for_workers(raw, make, environment_id, tag) -> None:
    """Refused with 501 at the environment already, or at the session on it; and the work queue is not there."""
    body = {"name": tag, "config": {"type": "self_hosted"}}
    response = raw.post("/v1/environments", json=body)
    if response.status_code == 200:
        environment = response.json()["id"]
        response = raw.post("/v1/sessions", json={"agent": make.agent().id, "environment_id": environment, "title": tag})
    refused(response, Case("self-hosted", status=501, fragment="self_hosted"))
    for method, path in [("GET", "work"), ("GET", "work/poll"), ("GET", "work/stats"), ("POST", "work/work_1/ack")]:
        response = raw.request(method, f"/v1/environments/{environment_id}/{path}")
        refused(response, Case(path, status=(404, 501)))


def test_limits_that_are_still_fine(raw, tag) -> None:
    body = {
        "name": tag.ljust(256, "n"),
        "description": "d" * 1024,
        "metadata": {f"{number:02}".ljust(64, "k"): "v" * 512 for number in range(16)},
        "scope": "organization",
    }
    assert raw.post("/v1/environments", json=body).status_code == 200
