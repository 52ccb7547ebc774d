"""Agents and their versions through the official client."""

from __future__ import annotations

import uuid

import anthropic
import pytest

from conftest import custom, toolset
from support.registry import covers


@covers("beta.agents.create", "beta.agents.retrieve")
def test_create_resolves_and_retrieve_returns_the_same(client, mock) -> None:
    agent = client.beta.agents.create(
        name="Coder",
        model=mock.model,
        description="writes code",
        system="You write code.",
        tools=[
            {"type": "agent_toolset_20260401", "configs": [{"name": "bash", "permission_policy": {"type": "always_ask"}}]},
            custom(),
        ],
        metadata={"team": "blue"},
    )
    assert agent.id.startswith("agent_01") and agent.type == "agent" and agent.version == 1
    assert agent.model.id == mock.model and agent.model.speed == "standard"
    assert agent.execution_identity.type == "service_account"
    assert (agent.description, agent.system, agent.metadata) == ("writes code", "You write code.", {"team": "blue"})
    assert agent.archived_at is None and agent.multiagent is None
    builtin, own = agent.tools
    assert builtin.default_config.enabled and builtin.default_config.permission_policy.type == "always_allow"
    (bash,) = builtin.configs
    assert (bash.type, bash.name, bash.enabled, bash.permission_policy.type) == ("bash", "bash", True, "always_ask")
    assert own.name == "lookup" and own.input_schema.type == "object"
    assert client.beta.agents.retrieve(agent.id) == agent
    assert client.beta.agents.retrieve(agent.id, version=1) == agent


def test_create_with_the_least(client, mock) -> None:
    agent = client.beta.agents.create(name="a", model={"id": mock.model, "effort": "high"})
    assert agent.model.effort is not None and agent.model.effort.type == "high"
    assert (agent.tools, agent.mcp_servers, agent.skills, agent.metadata) == ([], [], [], {})
    assert (agent.description, agent.system) == (None, None)


def test_every_nullable_key_is_spelled_out(raw, mock) -> None:
    body = raw.post("/v1/agents", json={"name": "a", "model": mock.model}).json()
    for key in ("description", "system", "multiagent", "archived_at"):
        assert key in body and body[key] is None
    assert set(body["model"]) >= {"id", "effort", "inference_geo", "speed"}
    assert body["created_at"] == body["updated_at"] and body["created_at"].endswith("Z")


def test_custom_schemas_come_back_whole(client, mock) -> None:
    schema = {
        "type": "object",
        "title": "T",
        "additionalProperties": False,
        "properties": {"z": {"enum": [1, "x", None]}, "a": {"type": "string", "description": "d"}},
        "required": ["z"],
    }
    tool = {**custom("x"), "input_schema": schema}
    agent = client.beta.agents.create(name="a", model=mock.model, tools=[tool])
    found = client.beta.agents.with_raw_response.retrieve(agent.id).http_response.json()["tools"][0]["input_schema"]
    assert found == schema and list(found["properties"]) == ["z", "a"], "keys and their order must not change"


@covers("beta.agents.update", "beta.agents.versions.list")
def test_update_makes_versions(client, mock) -> None:
    agent = client.beta.agents.create(name="one", model=mock.model, system="s", description="d", metadata={"a": "1", "b": "2"})
    second = client.beta.agents.update(agent.id, version=1, name="two", system=None, metadata={"a": "9", "b": None, "c": "3"})
    assert (second.version, second.name, second.system, second.description) == (2, "two", None, "d")
    assert second.metadata == {"a": "9", "c": "3"}
    assert second.updated_at > agent.updated_at and second.created_at == agent.created_at
    third = client.beta.agents.update(agent.id, tools=[toolset()], description="")
    assert third.version == 3 and len(third.tools) == 1 and third.description is None
    versions = list(client.beta.agents.versions.list(agent.id))
    assert [each.version for each in versions] == [3, 2, 1]
    assert versions[0] == third and versions[1] == second and versions[2] == agent
    assert client.beta.agents.retrieve(agent.id, version=2) == second
    assert client.beta.agents.retrieve(agent.id) == third


def test_update_without_a_change_keeps_the_version(client, mock) -> None:
    agent = client.beta.agents.create(name="a", model=mock.model, tools=[toolset()], metadata={"k": "v"})
    same = client.beta.agents.update(
        agent.id, version=1, name="a", model={"id": mock.model}, tools=[toolset()], metadata={"k": "v", "absent": None}
    )
    assert same == agent
    assert client.beta.agents.update(agent.id) == agent


def test_update_clears_lists(client, mock) -> None:
    agent = client.beta.agents.create(name="a", model=mock.model, tools=[custom()])
    assert client.beta.agents.update(agent.id, tools=[]).tools == []
    again = client.beta.agents.update(agent.id, tools=[custom()])
    assert again.version == 3
    assert client.beta.agents.update(agent.id, tools=None).tools == []


def test_model_sub_fields_on_update(client, mock) -> None:
    agent = client.beta.agents.create(name="a", model={"id": mock.model, "effort": "low"})
    kept = client.beta.agents.update(agent.id, model=mock.model)
    assert kept.model.effort.type == "low", "the same id keeps the effort"
    moved = client.beta.agents.update(agent.id, model={"id": mock.model + "-b"})
    assert moved.model.id == mock.model + "-b"


def test_a_version_conflict_is_not_retried(client, server, watch, mock) -> None:
    from conftest import make_client

    agent = client.beta.agents.create(name="a", model=mock.model)
    client.beta.agents.update(agent.id, version=1, name="b")
    stock = make_client(server, watch, max_retries=2)
    sent = []
    stock._client.event_hooks["request"].append(lambda request: sent.append(request.url.path))
    with pytest.raises(anthropic.ConflictError) as refused:
        stock.beta.agents.update(agent.id, version=1, name="c")
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(sent) == 1, "the client was told not to try again"
    assert client.beta.agents.retrieve(agent.id).version == 2


def test_concurrent_updates_of_one_version_have_one_winner(client, mock) -> None:
    from concurrent.futures import ThreadPoolExecutor

    agent = client.beta.agents.create(name="a", model=mock.model)

    def update(number: int) -> int:
        try:
            client.beta.agents.update(agent.id, version=1, name=f"name {number}")
            return 200
        except anthropic.ConflictError:
            return 409

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(update, range(8)))
    assert sorted(results) == [200] + [409] * 7
    assert client.beta.agents.retrieve(agent.id).version == 2


@covers("beta.agents.archive", "beta.agents.list")
def test_archive_hides_and_lists_page(client, mock) -> None:
    tag = uuid.uuid4().hex
    agents = [client.beta.agents.create(name=f"{tag} {number}", model=mock.model) for number in range(5)]
    archived = client.beta.agents.archive(agents[2].id)
    assert archived.archived_at is not None and archived.version == 1
    assert client.beta.agents.archive(agents[2].id) == archived
    assert client.beta.agents.retrieve(agents[2].id) == archived

    def names(**options) -> list[str]:
        found = client.beta.agents.list(limit=2, created_at_gte=agents[0].created_at, **options)
        return [agent.name for agent in found if agent.name.startswith(tag)]

    assert names() == [f"{tag} {number}" for number in (4, 3, 1, 0)]
    assert names(include_archived=True) == [f"{tag} {number}" for number in (4, 3, 2, 1, 0)]
    bounded = client.beta.agents.list(created_at_gte=agents[1].created_at, created_at_lte=agents[3].created_at)
    assert [agent.name for agent in bounded if agent.name.startswith(tag)] == [f"{tag} 3", f"{tag} 1"]


def test_versions_page(client, mock) -> None:
    agent = client.beta.agents.create(name="v1", model=mock.model)
    for number in range(2, 7):
        client.beta.agents.update(agent.id, name=f"v{number}")
    page = client.beta.agents.versions.list(agent.id, limit=2)
    assert [each.version for each in page.data] == [6, 5] and page.next_page is not None
    assert [each.name for each in client.beta.agents.versions.list(agent.id, limit=2)] == ["v6", "v5", "v4", "v3", "v2", "v1"]
