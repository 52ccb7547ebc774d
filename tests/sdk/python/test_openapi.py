"""schemathesis against the document that the server itself serves.

Every operation gets a 2xx from a request made by hand here (an operation without one fails the test), and then
generated requests, with ids of real objects in most of them: no 5xx, no undocumented status, no body that
differs from its schema. `SELFSAME_FUZZ` is the number of generated requests for each operation.
"""

from __future__ import annotations

import io
import os
import time
import uuid
import zipfile
from typing import Any, Callable, Iterator

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from conftest import BETA, HEADERS

ORGANIZATION_BETA = "webhooks-2026-10-07"
EXAMPLES = int(os.environ.get("SELFSAME_FUZZ", "20"))


def no_fault(ctx, response, case) -> bool | None:
    """No 5xx. 501 is no fault: it is how a feature that the API has and this server has not yet is refused, and it
    says which one and that a retry is of no use."""
    if response.status_code == 501:
        error = response.json()["error"]
        assert error["type"] == "api_error" and "does not offer" in error["message"], error
        assert response.headers["x-should-retry"][0] == "false"
        return None
    return not_a_server_error(ctx, response, case)


CHECKS = [no_fault, status_code_conformance, content_type_conformance, response_schema_conformance]
MESSAGE = {"type": "user.message", "content": [{"type": "text", "text": "hi"}]}
SKILL = b"---\nname: s\ndescription: d\n---\n"
CUSTOM = {"type": "custom", "name": "lookup", "description": "d", "input_schema": {"type": "object"}}

OAUTH = {
    "type": "mcp_oauth",
    "mcp_server_url": "https://mcp.example.com/mcp",
    "access_token": "a",
    "expires_at": "2099-01-01T00:00:00Z",
    "refresh": {
        "client_id": "c",
        "refresh_token": "r",
        "token_endpoint": "https://auth.example.com/token",
        "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "s"},
    },
}


def packed() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("s/SKILL.md", SKILL)
    return archive.getvalue()


ZIP = packed()


class World:
    """Objects to aim at. Whatever an operation destroys, it gets fresh."""

    # Nobody listens there.
    hook = "https://127.0.0.1:9/hook"

    def __init__(self, raw, mock, admin_key) -> None:
        self.raw, self.mock = raw, mock
        self.organization = {"authorization": f"Bearer {admin_key}", "anthropic-beta": ORGANIZATION_BETA}
        start = {"name": "create_agent", "input": {"agent_name": "a", "message": "Begin."}}
        mock.answer({"tool": start}, tool="create_agent", turn=0)
        mock.answer("ok")
        self.environment = self.environment_id()
        self.agent = self.agent_id()
        self.session = self.session_id()
        # A stream on an archived session ends by itself, so it can be read whole.
        self.archived = self.session_id()
        self.post(f"/v1/sessions/{self.archived}/archive")
        self.file = self.file_id()
        self.skill = self.skill_id()
        self.resource = self.resource_id()
        self.vault = self.vault_id()
        self.credential = self.credential_id()
        self.webhook = self.webhook_id()
        self.organization_webhook = self.organization_webhook_id()
        self.model = raw.get("/v1/models").json()["data"][0]["id"]

    def post(self, path: str, **body: Any) -> Any:
        response = self.raw.post(path, json=body or None)
        assert response.status_code == 200, (path, response.text)
        return response.json()

    def agent_id(self) -> str:
        return self.post("/v1/agents", name="a", model=self.mock.model, tools=[CUSTOM])["id"]

    def environment_id(self) -> str:
        return self.post("/v1/environments", name=uuid.uuid4().hex)["id"]

    def session_id(self) -> str:
        return self.post("/v1/sessions", agent=self.agent, environment_id=self.environment)["id"]

    def file_id(self) -> str:
        response = self.raw.post("/v1/files", files={"file": ("a.csv", b"a,b", "text/csv")})
        assert response.status_code == 200, response.text
        return response.json()["id"]

    def resource_id(self) -> str:
        """A file in the session, at a path of its own."""
        path = f"/v1/sessions/{self.session}/resources"
        return self.post(path, type="file", file_id=self.file, mount_path=uuid.uuid4().hex)["id"]

    def repository(self) -> dict[str, str]:
        """A session with a repository, and the repository."""
        repository = {"type": "github_repository", "url": "https://github.com/acme/tool"}
        session = self.post("/v1/sessions", agent=self.agent, environment_id=self.environment, resources=[repository])
        return {"session_id": session["id"], "resource_id": session["resources"][0]["id"]}

    def skill_id(self) -> str:
        response = self.raw.post("/v1/skills", files={"files[]": ("s/SKILL.md", SKILL)})
        assert response.status_code == 200, response.text
        return response.json()["id"]

    def version_id(self) -> str:
        """A version of the skill that is not its last."""
        response = self.raw.post(f"/v1/skills/{self.skill}/versions", files={"files[]": ("s/SKILL.md", SKILL)})
        assert response.status_code == 200, response.text
        return response.json()["id"]

    def vault_id(self) -> str:
        return self.post("/v1/vaults", display_name="v")["id"]

    def credential_id(self, **auth: str) -> str:
        """A credential for a server of its own, in a vault that has room for it."""
        url = f"http://127.0.0.1:1/{uuid.uuid4().hex}"
        auth = {"mcp_server_url": url, **(auth or {"type": "static_bearer", "token": "t"})}
        return self.post(f"/v1/vaults/{self.vault}/credentials", auth=auth)["id"]

    def webhook_id(self) -> str:
        return self.post("/v1/webhook_endpoints", url=self.hook, enabled_events=["agent.archived"])["id"]

    def delivery(self, webhook: str) -> dict[str, str]:
        """An endpoint, and something that was sent to it."""
        sent = self.post(f"/v1/webhook_endpoints/{webhook}/test_event")
        return {"webhook_endpoint_id": webhook, "webhook_event_id": sent["id"]}

    def organization_webhook_id(self) -> str:
        body = {"url": self.hook, "enabled_events": ["external_key.failed"]}
        response = self.raw.post("/v1/organizations/webhooks", json=body, headers=self.organization)
        assert response.status_code == 200, response.text
        return response.json()["id"]

    def clear(self) -> None:
        """There may be only so many of these, and other tests want some."""
        for path, headers in (("/v1/webhook_endpoints", {}), ("/v1/organizations/webhooks", self.organization)):
            for each in self.raw.get(f"{path}?limit=100", headers=headers).json()["data"]:
                assert self.raw.delete(f"{path}/{each['id']}", headers=headers).status_code == 200

    def thread_id(self, session: str) -> str:
        return self.raw.get(f"/v1/sessions/{session}/threads").json()["data"][0]["id"]

    def child(self) -> dict[str, str]:
        """A session, and a thread of it that its agent has started and that is idle."""
        team = {"type": "coordinator", "agents": [self.agent_id()]}
        lead = self.post("/v1/agents", name="lead", model=self.mock.model, multiagent=team)["id"]
        session = self.post("/v1/sessions", agent=lead, environment_id=self.environment)["id"]
        message = {"type": "user.message", "content": [{"type": "text", "text": "Begin."}]}
        self.post(f"/v1/sessions/{session}/events", events=[message])
        deadline = time.monotonic() + 60
        while True:
            threads = self.raw.get(f"/v1/sessions/{session}/threads").json()["data"]
            if len(threads) == 2 and all(thread["status"] == "idle" for thread in threads):
                return {"session_id": session, "thread_id": threads[1]["id"]}
            assert time.monotonic() < deadline, threads
            time.sleep(0.02)

    def parameters(self, operation: Any) -> dict[str, str]:
        """Ids of real objects for the parameters in a path."""
        session = self.archived if operation.path.endswith("/stream") else self.session
        known: dict[str, Callable[[], str]] = {
            "agent_id": lambda: self.agent,
            "environment_id": lambda: self.environment,
            "session_id": lambda: session,
            "thread_id": lambda: self.thread_id(session),
            "model_id": lambda: self.model,
            "file_id": lambda: self.file,
            "resource_id": lambda: self.resource,
            "skill_id": lambda: self.skill,
            "version": lambda: "latest",
            "vault_id": lambda: self.vault,
            "credential_id": lambda: self.credential,
            "webhook_endpoint_id": lambda: self.organization_webhook if "/organizations/" in operation.path else self.webhook,
        }
        names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
        return {name: known[name]() for name in names if name in known}


# How to succeed: (method, path) -> path parameters that differ from the usual ones, query, body.
RECIPES: dict[tuple[str, str], Callable[[World], dict[str, Any]]] = {
    ("GET", "/v1/models"): lambda world: {"query": {"limit": 2}},
    ("GET", "/v1/models/{model_id}"): lambda world: {},
    ("POST", "/v1/files"): lambda world: {"body": {"file": b"a,b", "expires_in_seconds": 3600}, "media_type": "multipart/form-data"},
    ("GET", "/v1/files"): lambda world: {"query": {"limit": 2, "scope_id": world.session}},
    ("GET", "/v1/files/{file_id}"): lambda world: {},
    ("DELETE", "/v1/files/{file_id}"): lambda world: {"path_parameters": {"file_id": world.file_id()}},
    ("GET", "/v1/files/{file_id}/content"): lambda world: {},
    ("POST", "/v1/skills"): lambda world: {"body": {"files[]": [ZIP], "display_name": "d"}, "media_type": "multipart/form-data"},
    ("GET", "/v1/skills"): lambda world: {"query": {"limit": 2, "source": "custom"}},
    ("GET", "/v1/skills/{skill_id}"): lambda world: {"headers": {"anthropic-beta": "skills-2025-10-02"}},
    ("DELETE", "/v1/skills/{skill_id}"): lambda world: {"path_parameters": {"skill_id": world.skill_id()}},
    ("POST", "/v1/skills/{skill_id}/versions"): lambda world: {"body": {"files[]": [ZIP]}, "media_type": "multipart/form-data"},
    ("GET", "/v1/skills/{skill_id}/versions"): lambda world: {"query": {"limit": 2}},
    ("GET", "/v1/skills/{skill_id}/versions/{version}"): lambda world: {},
    ("DELETE", "/v1/skills/{skill_id}/versions/{version}"): lambda world: {"path_parameters": {"version": world.version_id()}},
    ("GET", "/v1/skills/{skill_id}/versions/{version}/content"): lambda world: {},
    ("POST", "/v1/agents"): lambda world: {"body": {"name": "a", "model": world.mock.model, "tools": [CUSTOM]}},
    ("GET", "/v1/agents"): lambda world: {"query": {"limit": 2}},
    ("GET", "/v1/agents/{agent_id}"): lambda world: {"query": {"version": 1}},
    ("POST", "/v1/agents/{agent_id}"): lambda world: {"body": {"name": "b"}},
    ("POST", "/v1/agents/{agent_id}/archive"): lambda world: {"path_parameters": {"agent_id": world.agent_id()}},
    ("GET", "/v1/agents/{agent_id}/versions"): lambda world: {},
    ("POST", "/v1/environments"): lambda world: {"body": {"name": uuid.uuid4().hex, "config": {"type": "cloud"}}},
    ("GET", "/v1/environments"): lambda world: {"query": {"limit": 2}},
    ("GET", "/v1/environments/{environment_id}"): lambda world: {},
    ("POST", "/v1/environments/{environment_id}"): lambda world: {"body": {"description": "d"}},
    ("DELETE", "/v1/environments/{environment_id}"): lambda world: {"path_parameters": {"environment_id": world.environment_id()}},
    ("POST", "/v1/environments/{environment_id}/archive"): lambda world: {"path_parameters": {"environment_id": world.environment_id()}},
    ("POST", "/v1/sessions"): lambda world: {"body": {"agent": world.agent, "environment_id": world.environment}},
    ("GET", "/v1/sessions"): lambda world: {"query": {"limit": 2, "statuses[]": ["idle"]}},
    ("GET", "/v1/sessions/{session_id}"): lambda world: {},
    ("POST", "/v1/sessions/{session_id}"): lambda world: {"body": {"title": "t"}},
    ("DELETE", "/v1/sessions/{session_id}"): lambda world: {"path_parameters": {"session_id": world.session_id()}},
    ("POST", "/v1/sessions/{session_id}/archive"): lambda world: {"path_parameters": {"session_id": world.session_id()}},
    ("GET", "/v1/sessions/{session_id}/resources"): lambda world: {"query": {"limit": 2}},
    ("POST", "/v1/sessions/{session_id}/resources"): lambda world: {
        "body": {"type": "file", "file_id": world.file, "mount_path": uuid.uuid4().hex}
    },
    ("GET", "/v1/sessions/{session_id}/resources/{resource_id}"): lambda world: {},
    ("POST", "/v1/sessions/{session_id}/resources/{resource_id}"): lambda world: {
        "path_parameters": world.repository(), "body": {"authorization_token": "ghp_x"}
    },
    ("DELETE", "/v1/sessions/{session_id}/resources/{resource_id}"): lambda world: {
        "path_parameters": {"resource_id": world.resource_id()}
    },
    ("GET", "/v1/sessions/{session_id}/events"): lambda world: {"query": {"limit": 2}},
    ("POST", "/v1/sessions/{session_id}/events"): lambda world: {"body": {"events": [MESSAGE]}},
    ("GET", "/v1/sessions/{session_id}/events/stream"): lambda world: {},
    ("GET", "/v1/sessions/{session_id}/stream"): lambda world: {},
    ("GET", "/v1/sessions/{session_id}/threads"): lambda world: {},
    ("GET", "/v1/sessions/{session_id}/threads/{thread_id}"): lambda world: {},
    ("GET", "/v1/sessions/{session_id}/threads/{thread_id}/events"): lambda world: {},
    ("GET", "/v1/sessions/{session_id}/threads/{thread_id}/stream"): lambda world: {},
    ("POST", "/v1/vaults"): lambda world: {"body": {"display_name": "v", "metadata": {"a": "b"}}},
    ("GET", "/v1/vaults"): lambda world: {"query": {"limit": 2}},
    ("GET", "/v1/vaults/{vault_id}"): lambda world: {},
    ("POST", "/v1/vaults/{vault_id}"): lambda world: {"body": {"metadata": {"a": None}}},
    ("DELETE", "/v1/vaults/{vault_id}"): lambda world: {"path_parameters": {"vault_id": world.vault_id()}},
    ("POST", "/v1/vaults/{vault_id}/archive"): lambda world: {"path_parameters": {"vault_id": world.vault_id()}},
    ("POST", "/v1/vaults/{vault_id}/credentials"): lambda world: {"body": {"auth": OAUTH}},
    ("GET", "/v1/vaults/{vault_id}/credentials"): lambda world: {"query": {"limit": 2, "include_archived": "true"}},
    ("GET", "/v1/vaults/{vault_id}/credentials/{credential_id}"): lambda world: {},
    ("POST", "/v1/vaults/{vault_id}/credentials/{credential_id}"): lambda world: {
        "body": {"auth": {"type": "static_bearer", "token": "t2"}}
    },
    ("DELETE", "/v1/vaults/{vault_id}/credentials/{credential_id}"): lambda world: {
        "path_parameters": {"credential_id": world.credential_id()}
    },
    ("POST", "/v1/vaults/{vault_id}/credentials/{credential_id}/archive"): lambda world: {
        "path_parameters": {"credential_id": world.credential_id()}
    },
    # An address that users' URLs may not reach: nobody is asked.
    ("POST", "/v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate"): lambda world: {
        "path_parameters": {"credential_id": world.credential_id(type="mcp_oauth", access_token="a")}
    },
    ("POST", "/v1/webhook_endpoints"): lambda world: {"body": {"url": world.hook, "enabled_events": ["session.updated"]}},
    ("GET", "/v1/webhook_endpoints"): lambda world: {"query": {"limit": 2}},
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}"): lambda world: {},
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}"): lambda world: {"body": {"name": "n"}},
    ("DELETE", "/v1/webhook_endpoints/{webhook_endpoint_id}"): lambda world: {
        "path_parameters": {"webhook_endpoint_id": world.webhook_id()}
    },
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/regenerate_signing_secret"): lambda world: {
        "body": {"overlap_seconds": 60}
    },
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/test_event"): lambda world: {"body": {}},
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries"): lambda world: {"query": {"limit": 2}},
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{webhook_event_id}"): lambda world: {
        "path_parameters": world.delivery(world.webhook)
    },
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{webhook_event_id}/redeliver"): lambda world: {
        "path_parameters": world.delivery(world.webhook)
    },
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/redeliver"): lambda world: {
        "body": {"since": "2099-01-01T00:00:00Z"}
    },
    ("POST", "/v1/organizations/webhooks"): lambda world: {"body": {"url": world.hook, "enabled_events": ["external_key.recovered"]}},
    ("GET", "/v1/organizations/webhooks"): lambda world: {"query": {"limit": 2, "order": "asc"}},
    ("GET", "/v1/organizations/webhooks/{webhook_endpoint_id}"): lambda world: {},
    ("POST", "/v1/organizations/webhooks/{webhook_endpoint_id}"): lambda world: {"body": {"state": "disabled"}},
    ("DELETE", "/v1/organizations/webhooks/{webhook_endpoint_id}"): lambda world: {
        "path_parameters": {"webhook_endpoint_id": world.organization_webhook_id()}
    },
    ("POST", "/v1/organizations/webhooks/{webhook_endpoint_id}/regenerate_signing_secret"): lambda world: {},
    # Archived with its session: archiving it again changes nothing.
    ("POST", "/v1/sessions/{session_id}/threads/{thread_id}/archive"): lambda world: {
        "path_parameters": world.child()
    },
}


@pytest.fixture
def world(raw, mock, watch, server) -> Iterator[World]:
    world = World(raw, mock, server.admin_key)
    yield world
    world.clear()


@pytest.fixture
def document(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.fixture
def call(server):
    def call(case):
        # A case may ask for an older generation of answers.
        betas = [BETA, ORGANIZATION_BETA, *filter(None, [(case.headers or {}).get("anthropic-beta")])]
        key = server.admin_key if case.path.startswith("/v1/organizations/") else server.key
        headers = {**HEADERS, "authorization": f"Bearer {key}", "anthropic-beta": ",".join(betas)}
        return case.call(base_url=server.url, headers=headers, timeout=30)

    return call


def operations(document) -> list[Any]:
    return [result.ok() for result in document.get_all_operations()]


def test_the_document_has_no_loose_responses(document) -> None:
    for operation in operations(document):
        statuses = set(operation.definition.raw["responses"])
        assert all(status.isdigit() for status in statuses), (operation.label, statuses)
        assert "200" in statuses, operation.label


def test_every_operation_succeeds(document, world, call) -> None:
    found = set()
    failures = []
    for operation in operations(document):
        key = (operation.method.upper(), operation.path)
        found.add(key)
        if key not in RECIPES:
            failures.append(f"{operation.label}: no request in this file makes it succeed")
            continue
        recipe = RECIPES[key](world)
        parameters = {**world.parameters(operation), **recipe.pop("path_parameters", {})}
        media = {"media_type": recipe.pop("media_type", "application/json")} if "body" in recipe else {}
        case = operation.Case(path_parameters=parameters, **media, **recipe)
        response = call(case)
        if not 200 <= response.status_code < 300:
            failures.append(f"{operation.label}: {response.status_code} {response.text[:300]}")
            continue
        try:
            case.validate_response(response, checks=CHECKS)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - collected for one report
            failures.append(f"{operation.label}: {describe(error)}")
    assert not failures, "\n".join(failures)
    assert not set(RECIPES) - found, f"these are not in the document: {sorted(set(RECIPES) - found)}"


def describe(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(describe(each) for each in error.exceptions)
    return f"{type(error).__name__}: {str(error)[:600]}"


def test_generated_requests(document, world, call) -> None:
    failures = []
    for operation in operations(document):
        parameters = world.parameters(operation)

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy(), aimed=st.integers(0, 3))
        def check(case, aimed) -> None:
            if aimed and parameters:
                # Mutating a shared object is fine, destroying it is not.
                if operation.method.upper() == "DELETE" or operation.path.endswith("/archive"):
                    return
                case.path_parameters = {**(case.path_parameters or {}), **parameters}
            body = case.body
            if operation.path == "/v1/sessions" and isinstance(body, dict) and aimed:
                case.body = {**body, "agent": world.agent, "environment_id": world.environment}
            if operation.path.endswith("/stream") and not aimed:
                case.path_parameters = {**parameters, "session_id": "sesn_x"}
            response = call(case)
            try:
                case.validate_response(response, checks=CHECKS)
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - said with what was sent
                sent = case.as_curl_command()[:1500]
                raise AssertionError(f"{describe(error)}\n  {response.status_code} {response.text[:300]}\n  {sent}") from None

        try:
            check()
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - collected for one report
            failures.append(f"{operation.label}: {describe(error)}")
    assert not failures, "\n".join(failures)
