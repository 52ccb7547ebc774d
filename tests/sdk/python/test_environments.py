"""Environments through the official client."""

from __future__ import annotations

import uuid

import anthropic
import pytest

from support.registry import covers


def name() -> str:
    return f"env {uuid.uuid4().hex}"


@covers("beta.environments.create", "beta.environments.retrieve")
def test_create_fills_defaults(client) -> None:
    environment = client.beta.environments.create(name=name())
    assert environment.id.startswith("env_01") and environment.type == "environment"
    assert environment.config.type == "cloud"
    assert environment.config.networking.type == "unrestricted"
    packages = environment.config.packages
    assert [packages.apt, packages.cargo, packages.gem, packages.go, packages.npm, packages.pip] == [[]] * 6
    assert (environment.description, environment.metadata, environment.archived_at) == (None, {}, None)
    assert client.beta.environments.retrieve(environment.id) == environment


def test_create_with_everything(client) -> None:
    environment = client.beta.environments.create(
        name=name(),
        description="d",
        metadata={"a": "1"},
        config={
            "type": "cloud",
            "networking": {
                "type": "limited",
                "allowed_hosts": ["example.com", "*.example.org"],
                "allow_package_managers": True,
            },
            "packages": {"pip": ["requests==2.32.0"], "npm": ["express@4.18.0"]},
        },
    )
    networking = environment.config.networking
    assert networking.allowed_hosts == ["example.com", "*.example.org"]
    assert networking.allow_package_managers is True and networking.allow_mcp_servers is False
    assert environment.config.packages.pip == ["requests==2.32.0"] and environment.config.packages.apt == []


def test_self_hosted_is_stored_or_refused_by_name(client) -> None:
    """Until workers exist a server may do either; what it may not do is to store something else."""
    try:
        environment = client.beta.environments.create(name=name(), config={"type": "self_hosted"})
    except anthropic.APIStatusError as refused:
        assert refused.status_code == 501 and "self_hosted" in refused.message
        return
    assert client.beta.environments.retrieve(environment.id).config.type == "self_hosted"


@covers("beta.environments.update")
def test_update_merges(client) -> None:
    environment = client.beta.environments.create(
        name=name(),
        description="d",
        metadata={"a": "1", "b": "2", "c": "3"},
        config={"type": "cloud", "networking": {"type": "limited", "allowed_hosts": ["a.example"], "allow_package_managers": True}},
    )
    changed = client.beta.environments.update(
        environment.id,
        description=None,
        metadata={"a": None, "b": "", "d": "4"},
        config={"type": "cloud", "packages": {"pip": ["x"]}},
    )
    assert changed.description is None and changed.metadata == {"c": "3", "d": "4"}
    assert changed.config.networking.allowed_hosts == ["a.example"] and changed.config.packages.pip == ["x"]
    assert changed.updated_at > environment.updated_at
    again = client.beta.environments.update(
        environment.id, config={"type": "cloud", "networking": {"type": "limited", "allow_mcp_servers": True}}
    )
    assert again.config.networking.allowed_hosts == ["a.example"] and again.config.networking.allow_mcp_servers
    opened = client.beta.environments.update(
        environment.id, config={"type": "cloud", "networking": {"type": "unrestricted"}}
    )
    assert opened.config.networking.type == "unrestricted" and opened.config.packages.pip == ["x"]
    closed = client.beta.environments.update(
        environment.id,
        config={"type": "cloud", "networking": {"type": "limited", "allow_package_managers": True}},
    )
    assert closed.config.networking.allowed_hosts == [], "another kind of networking starts from defaults"
    assert client.beta.environments.update(environment.id, name=None).name == environment.name


@covers("beta.environments.list", "beta.environments.archive")
def test_list_and_archive(client) -> None:
    tag = uuid.uuid4().hex
    made = [client.beta.environments.create(name=f"{tag} {number}") for number in range(4)]
    archived = client.beta.environments.archive(made[1].id)
    assert archived.archived_at is not None
    assert client.beta.environments.archive(made[1].id) == archived

    def names(**options) -> list[str]:
        return [each.name for each in client.beta.environments.list(limit=3, **options) if each.name.startswith(tag)]

    assert names() == [f"{tag} {number}" for number in (3, 2, 0)]
    assert names(include_archived=True) == [f"{tag} {number}" for number in (3, 2, 1, 0)]


def test_a_name_is_free_again_after_archiving(client) -> None:
    taken = name()
    first = client.beta.environments.create(name=taken)
    with pytest.raises(anthropic.ConflictError) as refused:
        client.beta.environments.create(name=taken)
    assert refused.value.response.headers["x-should-retry"] == "false"
    client.beta.environments.archive(first.id)
    assert client.beta.environments.create(name=taken).id != first.id


@covers("beta.environments.delete")
def test_delete(client) -> None:
    environment = client.beta.environments.create(name=name())
    deleted = client.beta.environments.delete(environment.id)
    assert (deleted.id, deleted.type) == (environment.id, "environment_deleted")
    with pytest.raises(anthropic.NotFoundError):
        client.beta.environments.retrieve(environment.id)
    with pytest.raises(anthropic.NotFoundError):
        client.beta.environments.delete(environment.id)


def test_delete_waits_for_its_sessions(client, make) -> None:
    environment = client.beta.environments.create(name=name())
    session = client.beta.sessions.create(agent=make.agent().id, environment_id=environment.id)
    for state in ("idle", "archived"):
        with pytest.raises(anthropic.ConflictError) as refused:
            client.beta.environments.delete(environment.id)
        assert refused.value.response.headers["x-should-retry"] == "false"
        if state == "idle":
            client.beta.sessions.archive(session.id)
    client.beta.sessions.delete(session.id)
    client.beta.environments.delete(environment.id)


def test_a_session_goes_on_when_its_environment_is_archived(client, make, mock) -> None:
    mock.answer("still here")
    environment = client.beta.environments.create(name=name())
    session = client.beta.sessions.create(agent=make.agent().id, environment_id=environment.id)
    client.beta.environments.archive(environment.id)
    from support.tail import open_sdk

    with open_sdk(client, session.id) as tail:
        make.say(session, "hi")
        tail.wait_idle("end_turn")
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        client.beta.sessions.create(agent=make.agent().id, environment_id=environment.id)
