"""What every endpoint refuses in the same way: credentials, headers, bodies, paging, unknown names."""

from __future__ import annotations

import json

import httpx2
import pytest

from conftest import BETA, HEADERS
from support.cases import Case, envelope, refused

COLLECTIONS = ["/v1/agents", "/v1/environments", "/v1/sessions"]
UNKNOWN = "0" + "1" * 23


@pytest.fixture
def bare(server):
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        yield http


# Credentials.


@pytest.mark.parametrize("path", [*COLLECTIONS, "/v1/models"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "wrong"},
        {"x-api-key": ""},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": "k" * 4000},
    ],
    ids=lambda headers: str(headers)[:40],
)
def test_bad_credentials(bare, path, headers) -> None:
    response = bare.get(path, headers={**HEADERS, **headers})
    refused(response, Case("credentials", status=401))
    assert "anthropic-workspace-id" not in response.headers


def test_which_of_two_credentials_counts(bare, server) -> None:
    good, bad = server.key, "wrong"
    for headers, status in [
        ({"x-api-key": good, "authorization": f"Bearer {bad}"}, 200),
        ({"x-api-key": bad, "authorization": f"Bearer {good}"}, 200),
        ({"x-api-key": bad, "authorization": f"Bearer {bad}"}, 401),
    ]:
        assert bare.get("/v1/agents", headers={**HEADERS, **headers}).status_code == status, headers


def test_a_read_only_key_reads_and_no_more(bare, server, raw, mock) -> None:
    agent = raw.post("/v1/agents", json={"name": "a", "model": mock.model}).json()["id"]
    headers = {**HEADERS, "authorization": f"Bearer {server.read_only_key}"}
    for path in [*COLLECTIONS, "/v1/models", f"/v1/agents/{agent}", f"/v1/agents/{agent}/versions"]:
        assert bare.get(path, headers=headers).status_code == 200, path
    before = raw.get(f"/v1/agents/{agent}").json()
    for method, path, body in [
        ("POST", "/v1/agents", {"name": "a", "model": mock.model}),
        ("POST", f"/v1/agents/{agent}", {"name": "b"}),
        ("POST", f"/v1/agents/{agent}/archive", None),
        ("POST", "/v1/environments", {"name": mock.model}),
        ("POST", "/v1/sessions", {"agent": agent, "environment_id": "env_x"}),
    ]:
        refused(bare.request(method, path, json=body, headers=headers), Case(path, status=403))
    assert raw.get(f"/v1/agents/{agent}").json() == before


# Headers.


@pytest.mark.parametrize("path", COLLECTIONS)
@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        ",",
        ", ,",
        "files-api-2025-04-14",
        "managed-agents-2026-04-02",
        "managed-agents",
        "xmanaged-agents-2026-04-01",
        b"managed-agents-2026-04-01\xff",
        "managed-agents-2026-04-01;q=1",
        "x" * 7000,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_missing_or_malformed_beta_header(bare, server, path, value) -> None:
    headers = {"authorization": f"Bearer {server.key}"}
    if value is not None:
        headers["anthropic-beta"] = value
    refused(bare.get(path, headers=headers), Case("beta", status=(404, 400)))


@pytest.mark.parametrize(
    "values",
    [
        [BETA],
        [f"foo-2026-01-01,{BETA}"],
        [f"{BETA} , foo-2026-01-01"],
        ["foo-2026-01-01", BETA],
        [f"unknown-name-9999,{BETA},{BETA}"],
    ],
    ids=str,
)
def test_beta_headers_that_are_fine(bare, server, values) -> None:
    headers = [("authorization", f"Bearer {server.key}"), *(("anthropic-beta", value) for value in values)]
    assert bare.get("/v1/agents", headers=headers).status_code == 200


def test_every_response_says_who_it_is(raw, bare, server) -> None:
    seen = set()
    for path in ["/v1/agents", "/v1/models", "/v1/agents/none", "/v1/nowhere", "/v1/sessions?limit=0"]:
        response = raw.get(path)
        assert response.headers["request-id"].startswith("req_01")
        seen.add(response.headers["request-id"])
        if path != "/v1/nowhere":
            assert response.headers["anthropic-workspace-id"].startswith("wrkspc_")
            assert response.headers["anthropic-organization-id"]
    assert len(seen) == 5


def test_a_workspace_header_must_match(raw) -> None:
    own = raw.get("/v1/agents").headers["anthropic-workspace-id"]
    assert raw.get("/v1/agents", headers={"anthropic-workspace-id": own}).status_code == 200
    other = "wrkspc_01" + "1" * 22
    response = raw.get("/v1/agents", headers={"anthropic-workspace-id": other})
    assert response.status_code in (400, 403, 404)
    envelope(response)


@pytest.mark.parametrize("accept", ["application/json", "text/html", "image/png", "*/*", ""])
def test_accept_is_never_a_reason(raw, accept) -> None:
    assert raw.get("/v1/agents", headers={"accept": accept}).status_code == 200


# Paths and methods.


@pytest.mark.parametrize(
    "path",
    ["/v1/nowhere", "/v1", "/", "/v2/agents", "/v1/agents/x/y/z", "/v1/agents//", "/v1/sessions/x/nothing", "/v1/%ff"],
)
def test_unknown_routes(raw, path) -> None:
    refused(raw.get(path), Case(path, status=404))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/agents"),
        ("PATCH", "/v1/agents/{agent}"),
        ("DELETE", "/v1/agents/{agent}"),
        ("PUT", "/v1/sessions"),
        ("DELETE", "/v1/models"),
        ("GET", "/v1/agents/{agent}/archive"),
    ],
)
def test_methods_that_do_not_exist(raw, method, path) -> None:
    response = raw.request(method, path.replace("{agent}", "agent_01" + "1" * 22))
    assert response.status_code in (404, 405), response.text
    envelope(response)


IDS = {
    "/v1/agents/{}": "agent_",
    "/v1/agents/{}/versions": "agent_",
    "/v1/environments/{}": "env_",
    "/v1/sessions/{}": "sesn_",
    "/v1/sessions/{}/events": "sesn_",
    "/v1/sessions/{}/events/stream": "sesn_",
    "/v1/sessions/{}/stream": "sesn_",
    "/v1/sessions/{}/threads": "sesn_",
    "/v1/sessions/{}/threads/sthr_01" + "1" * 22: "sesn_",
    "/v1/models/{}": "model_",
}


@pytest.mark.parametrize("path", IDS)
def test_ids_that_are_not_there(raw, path) -> None:
    prefix = IDS[path]
    for identity in (
        prefix + "01" + "1" * 22,
        prefix + "01" + "2" * 21,
        prefix + "01" + "z" * 22,
        prefix,
        "x",
        "sesn_01" + "1" * 22 if prefix != "sesn_" else "agent_01" + "1" * 22,
        "%00",
        "%F0%9F%98%80",
        "..%2F..%2Fetc",
        "' OR 1=1 --".replace(" ", "%20"),
        "a" * 3000,
    ):
        refused(raw.get(path.format(identity)), Case(f"{path} {identity[:40]}", status=404))


@pytest.mark.parametrize(
    "path",
    ["/v1/agents", "/v1/environments", "/v1/sessions", "/v1/models", "{agent}", "{agent}/versions", "{session}", "{session}/events", "{session}/threads"],
)
def test_unknown_query_parameters(raw, make, path) -> None:
    session = make.session()
    path = path.replace("{agent}", f"/v1/agents/{session.agent.id}").replace("{session}", f"/v1/sessions/{session.id}")
    assert raw.get(f"{path}?beta=true").status_code == 200
    for query in ("after=1", "sort=name", "Limit=5", "created_at[near]=2026-01-01T00:00:00Z", "limit[]=5"):
        name = query.split("=")[0]
        refused(raw.get(f"{path}?{query}"), Case(query, fragment=name.split("[")[0]))


# Bodies.

CREATES = {
    "/v1/agents": {"name": "{mark}", "model": "m"},
    "/v1/environments": {"name": "{mark}"},
    "/v1/sessions": {"agent": "{agent}", "environment_id": "{environment}", "title": "{mark}"},
    "/v1/sessions/{session}/events": {"events": [{"type": "user.message", "content": [{"type": "text", "text": "{mark}"}]}]},
}


def bodies(valid: str) -> dict[str, bytes]:
    """Broken forms of a body that is otherwise fine, so that a lenient reader would store it."""
    text = valid.encode()
    inner = valid[1:-1]
    return {
        "empty": b"",
        "not JSON": b"hello",
        "truncated": text[:-1],
        "trailing garbage": text + b"x",
        "two values": text + text,
        "an array": b"[" + text + b"]",
        "a string": json.dumps(valid).encode(),
        "null": b"null",
        "a number": b"1",
        "invalid UTF-8": text.replace(b"{mark}", b"{mark}\xff\xfe"),
        "overlong UTF-8": text.replace(b"{mark}", b"{mark}\xc0\xaf"),
        "UTF-16": valid.encode("utf-16"),
        "lone surrogate": text.replace(b"{mark}", b"{mark}\\ud800"),
        "control character": text.replace(b"{mark}", b"{mark}\x01"),
        "NUL": text.replace(b"{mark}", b"{mark}\\u0000"),
        "unknown field": ("{" + inner + ', "surprise": 1}').encode(),
        "deep arrays": ("{" + inner + ', "surprise": ' + "[" * 100_000 + "]" * 100_000 + "}").encode(),
        "deep objects": ("{" + inner + ', "surprise": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}").encode(),
        "a huge number": ("{" + inner + ', "surprise": ' + "9" * 100_000 + "}").encode(),
        "duplicate field": ("{" + inner + "," + inner + "}").encode(),
    }


@pytest.fixture
def names(make, mock):
    session = make.session()
    return {
        "mark": mock.model,
        "agent": session.agent.id,
        "environment": session.environment_id,
        "session": session.id,
    }


def stored(raw, path: str, names: dict[str, str]) -> bool:
    """Whether a mark appears in a collection, archived objects included."""
    path = path.replace("{session}", names["session"])
    query = {"limit": 100} if "events" in path else {"limit": 100, "include_archived": "true"}
    response = raw.get(path, params=query)
    assert response.status_code == 200, response.text
    return any(names["mark"] in json.dumps({**each, "model": None, "agent": None}) for each in response.json()["data"])


# What people say to a model may hold any character; only names, titles and the like may not.
BROKEN = [(path, form) for path in CREATES for form in bodies("{}") if (form, "events" in path) != ("NUL", True)]


@pytest.mark.parametrize(("path", "form"), BROKEN)
def test_broken_bodies(raw, path, form, names) -> None:
    valid = json.dumps(CREATES[path])
    content = bodies(valid)[form]
    for name, value in names.items():
        content = content.replace(b"{" + name.encode() + b"}", value.encode())
        if form == "UTF-16":
            content = content.replace(("{" + name + "}").encode("utf-16-le"), value.encode("utf-16-le"))
    target = path.replace("{session}", names["session"])
    response = raw.post(target, content=content, headers={"content-type": "application/json"})
    refused(response, Case(form))
    assert not stored(raw, path, names)


def test_the_valid_bodies_are_valid(raw, names) -> None:
    """The control of the test above: without the damage the same bodies are accepted and seen."""
    for path, body in CREATES.items():
        content = json.dumps(body)
        for name, value in names.items():
            content = content.replace("{" + name + "}", value)
        response = raw.post(path.replace("{session}", names["session"]), content=content, headers={"content-type": "application/json"})
        assert response.status_code == 200, (path, response.text)
        assert stored(raw, path, names), path


@pytest.mark.parametrize("path", CREATES)
def test_huge_bodies(raw, path, names) -> None:
    filler = b'{"x":"' + b"a" * (33 * 1024 * 1024) + b'"}'
    target = path.replace("{session}", names["session"])
    try:
        response = raw.post(target, content=filler, headers={"content-type": "application/json"})
    except httpx2.WriteError:
        pytest.fail("the connection was cut before the answer could be read")
    refused(response, Case("huge", status=413))


def test_a_body_whose_length_is_not_told(raw) -> None:
    def chunks():
        for _ in range(34):
            yield b"a" * 1024 * 1024

    response = raw.post("/v1/agents", content=chunks(), headers={"content-type": "application/json"})
    refused(response, Case("chunked", status=413))


def test_an_archive_takes_no_body_or_an_empty_one(raw, mock) -> None:
    for content in (b"", b"{}"):
        agent = raw.post("/v1/agents", json={"name": "a", "model": mock.model}).json()["id"]
        assert raw.post(f"/v1/agents/{agent}/archive", content=content).status_code == 200


# Paging.

LISTS = {
    "/v1/agents": 100,
    "/v1/agents/{agent}/versions": 100,
    "/v1/environments": 1000,
    "/v1/sessions": 1000,
    "/v1/sessions/{session}/events": 1000,
    "/v1/sessions/{session}/threads": 1000,
    "/v1/models": 1000,
}


@pytest.mark.parametrize("path", LISTS)
def test_limits(raw, names, path) -> None:
    target = path.format(**names)
    most = LISTS[path]
    for limit in (1, most):
        assert raw.get(target, params={"limit": limit}).status_code == 200
    for limit in ("0", str(most + 1), "-1", "1.5", "abc", "", "1e2", "99999999999999999999", "1&limit=2"):
        refused(raw.get(f"{target}?limit={limit}"), Case(f"limit={limit}", fragment="limit"))
    refused(raw.get(target, params={"limit": most + 1}), Case("bounds", fragment=str(most)))


CURSORS = [
    "x",
    "page_",
    "page_!!!!",
    "page_bnVsbA",
    "page_e30",
    "page_W10",
    "page_eyJrIjoxfQ",
    "page_" + "A" * 5000,
    "%00",
    "page_%F0%9F%98%80",
]


@pytest.mark.parametrize("path", [path for path in LISTS if path != "/v1/models"])
def test_bad_cursors(raw, names, path) -> None:
    target = path.format(**names)
    for cursor in CURSORS:
        refused(raw.get(f"{target}?page={cursor}"), Case(f"page={cursor[:20]}", fragment="page"))


def test_cursors_of_another_list_or_order(raw, make, names) -> None:
    make.session()
    make.agent()
    sessions = raw.get("/v1/sessions?limit=1").json()["next_page"]
    agents = raw.get("/v1/agents?limit=1").json()["next_page"]
    assert sessions and agents
    assert raw.get("/v1/sessions", params={"page": sessions}).status_code == 200
    assert raw.get("/v1/sessions", params={"page": sessions, "order": "desc"}).status_code == 200
    refused(raw.get("/v1/sessions", params={"page": sessions, "order": "asc"}), Case("order", fragment="order"))
    for path, cursor in [
        ("/v1/agents", sessions),
        ("/v1/sessions", agents),
        (f"/v1/sessions/{names['session']}/events", sessions),
        (f"/v1/sessions/{names['session']}/threads", agents),
    ]:
        refused(raw.get(path, params={"page": cursor}), Case(path, fragment="page"))


def test_bounds_that_exclude_the_cursor(raw, make) -> None:
    agent = make.agent()
    sessions = [make.session(agent) for _ in range(3)]
    first = raw.get("/v1/sessions", params={"agent_id": agent.id, "limit": 1}).json()
    cursor = first["next_page"]
    inside = {"agent_id": agent.id, "page": cursor, "created_at[lte]": first["data"][0]["created_at"]}
    assert raw.get("/v1/sessions", params=inside).status_code == 200
    outside = {"agent_id": agent.id, "page": cursor, "created_at[lt]": sessions[0].created_at.isoformat().replace("+00:00", "Z")}
    refused(raw.get("/v1/sessions", params=outside), Case("bounds"))


def test_models_page_by_id(raw) -> None:
    for query in ("after_id=", "before_id=a&after_id=b", "after_id=%00", "limit=1&after_id=no-such-model"):
        response = raw.get(f"/v1/models?{query}")
        assert response.status_code in (200, 400), (query, response.text)
    assert raw.get("/v1/models").json().keys() >= {"data", "has_more", "first_id", "last_id"}


@pytest.mark.parametrize("value", ["yesterday", "2026-13-01T00:00:00Z", "2026-01-01", "1767225600", "", "2026-01-01T00:00:00", "9999999-01-01T00:00:00Z"])
def test_bad_times(raw, names, value) -> None:
    for path in ("/v1/agents", "/v1/sessions", "/v1/sessions/{session}/events"):
        response = raw.get(path.format(**names), params={"created_at[gte]": value})
        refused(response, Case(f"{path} {value}", fragment="created_at"))


@pytest.mark.parametrize("value", ["yes", "1", "TRUE", "", "null"])
def test_bad_booleans(raw, value) -> None:
    for path in COLLECTIONS:
        refused(raw.get(path, params={"include_archived": value}), Case(path, fragment="include_archived"))


METADATA = {
    "too many": {f"k{number}": "v" for number in range(17)},
    "a long key": {"k" * 65: "v"},
    "a long value": {"k": "v" * 513},
    "a number": {"k": 1},
    "a list": {"k": ["v"]},
    "a map": {"k": {}},
    "not a map": ["k"],
    "text": "k=v",
    "NUL in a key": {"a\0b": "v"},
    "NUL in a value": {"k": "a\0b"},
}


@pytest.mark.parametrize("form", METADATA)
def test_bad_metadata(raw, names, form) -> None:
    for path in ("/v1/agents", "/v1/environments", "/v1/sessions"):
        body = json.loads(json.dumps(CREATES[path]))
        for name, value in names.items():
            body = json.loads(json.dumps(body).replace("{" + name + "}", value))
        response = raw.post(path, json={**body, "metadata": METADATA[form]})
        refused(response, Case(f"{path} {form}", fragment="metadata"))
        assert not stored(raw, path, names)
    limits = {"metadata": {**{f"k{number}": "v" for number in range(15)}, "k" * 64: "v" * 512}}
    assert raw.post("/v1/agents", json={"name": "fits", "model": "m", **limits}).status_code == 200


# Foreign workspaces.


def test_objects_of_another_workspace_do_not_exist(raw, other, make, client) -> None:
    session = make.session()
    thread = raw.get(f"/v1/sessions/{session.id}/threads").json()["data"][0]["id"]
    agent, environment = session.agent.id, session.environment_id
    before = [raw.get(path).json() for path in (f"/v1/agents/{agent}", f"/v1/environments/{environment}")]
    requests = [
        ("GET", f"/v1/agents/{agent}", None),
        ("GET", f"/v1/agents/{agent}?version=1", None),
        ("POST", f"/v1/agents/{agent}", {"name": "stolen"}),
        ("POST", f"/v1/agents/{agent}/archive", None),
        ("GET", f"/v1/agents/{agent}/versions", None),
        ("GET", f"/v1/environments/{environment}", None),
        ("POST", f"/v1/environments/{environment}", {"name": "stolen"}),
        ("DELETE", f"/v1/environments/{environment}", None),
        ("POST", f"/v1/environments/{environment}/archive", None),
        ("GET", f"/v1/sessions/{session.id}", None),
        ("POST", f"/v1/sessions/{session.id}", {"title": "stolen"}),
        ("DELETE", f"/v1/sessions/{session.id}", None),
        ("POST", f"/v1/sessions/{session.id}/archive", None),
        ("GET", f"/v1/sessions/{session.id}/events", None),
        ("POST", f"/v1/sessions/{session.id}/events", {"events": [{"type": "user.interrupt"}]}),
        ("GET", f"/v1/sessions/{session.id}/events/stream", None),
        ("GET", f"/v1/sessions/{session.id}/stream", None),
        ("GET", f"/v1/sessions/{session.id}/threads", None),
        ("GET", f"/v1/sessions/{session.id}/threads/{thread}", None),
        ("POST", f"/v1/sessions/{session.id}/threads/{thread}/archive", None),
        ("GET", f"/v1/sessions/{session.id}/threads/{thread}/events", None),
        ("GET", f"/v1/sessions/{session.id}/threads/{thread}/stream", None),
        ("POST", "/v1/sessions", {"agent": agent, "environment_id": environment}),
    ]
    for method, path, body in requests:
        refused(other.request(method, path, json=body), Case(f"{method} {path}", status=404))
    own = other.post("/v1/agents", json={"name": "a", "model": "m"}).json()["id"]
    refused(other.post("/v1/sessions", json={"agent": own, "environment_id": environment}), Case("environment", status=404))
    assert before == [raw.get(path).json() for path in (f"/v1/agents/{agent}", f"/v1/environments/{environment}")]
    # Its age grows; nothing else has changed.
    assert client.beta.sessions.retrieve(session.id).to_dict() | {"stats": None} == session.to_dict() | {"stats": None}
    listed = other.get("/v1/sessions", params={"agent_id": agent, "include_archived": "true"})
    assert listed.status_code in (200, 404) and session.id not in listed.text
