"""Skills through the official clients, of both generations of the API."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.lib import files_from_dir

from conftest import TOOLSET
from support.registry import covers, resolve


def text(name: str, description: str = "Does things.") -> bytes:
    return f"---\nname: {name}\ndescription: {description}\n---\n# {name}\n".encode()


def files(name: str, **more: bytes) -> list[Any]:
    return [(f"{name}/SKILL.md", text(name)), *((f"{name}/{path}", content) for path, content in more.items())]


def fresh() -> str:
    return f"skill-{uuid.uuid4().hex[:12]}"


def unzip(content: bytes) -> dict[str, tuple[bytes, int]]:
    """Content and mode by path."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        return {each.filename: (archive.read(each), each.external_attr >> 16 & 0o777) for each in archive.infolist()}


@covers(*(f"{root}.{name}" for root in ("skills", "beta.skills") for name in ("create", "retrieve", "list", "delete")))
def test_a_skill_comes_and_goes(client) -> None:
    for path in ("skills", "beta.skills"):
        skills, name = resolve(client, path), fresh()
        skill = skills.create(files=files(name), display_name="My skill")
        assert (skill.type, skill.display_name, skill.source.type) == ("skill", "My skill", "custom")
        assert skill.id.startswith("skill_01") and skill.latest_version_id.startswith("skver_01")
        assert skills.retrieve(skill.id) == skill
        assert skills.list(limit=1).data == [skill]
        assert skill.id not in [each.id for each in skills.list(source="anthropic")]
        deleted = skills.delete(skill.id)
        assert (deleted.id, deleted.type) == (skill.id, "skill_deleted")
        with pytest.raises(anthropic.NotFoundError):
            skills.retrieve(skill.id)
        with pytest.raises(anthropic.NotFoundError):
            skills.delete(skill.id)


@covers(
    *(f"{root}.versions.{name}" for root in ("skills", "beta.skills") for name in ("create", "retrieve", "list", "delete")),
    "beta.skills.versions.download",
)
def test_versions(client) -> None:
    for path in ("skills", "beta.skills"):
        skills, name = resolve(client, path), fresh()
        versions = skills.versions
        skill = skills.create(files=files(name))
        first = versions.retrieve("latest", skill_id=skill.id)
        assert (first.id, first.name, first.description) == (skill.latest_version_id, name, "Does things.")
        made = [versions.create(skill.id, files=[("SKILL.md", text(name, f"Number {number}."))]) for number in range(3)]
        assert skills.retrieve(skill.id).latest_version_id == made[2].id
        assert [each.id for each in versions.list(skill.id, limit=2)] == [each.id for each in (*made[::-1], first)]
        assert versions.retrieve(made[1].id, skill_id=skill.id) == made[1]
        deleted = versions.delete(made[2].id, skill_id=skill.id)
        assert (deleted.id, deleted.type) == (made[2].id, "skill_version_deleted")
        assert versions.retrieve("latest", skill_id=skill.id) == made[1]
        with pytest.raises(anthropic.BadRequestError, match=name):
            versions.create(skill.id, files=files("another"))
        content = client.beta.skills.versions.download(made[0].id, skill_id=skill.id)
        assert content.headers["content-type"] == "application/zip"
        assert unzip(content.read()) == {f"{name}/SKILL.md": (text(name, "Number 0."), 0o644)}
        skills.delete(skill.id)


def test_a_directory_and_a_zip_of_it_are_the_same_skill(client, tmp_path) -> None:
    name = fresh()
    root = tmp_path / name
    (root / "scripts").mkdir(parents=True)
    (root / "SKILL.md").write_bytes(text(name))
    (root / "scripts" / "run.sh").write_bytes(b"#!/bin/sh\necho hi\n")
    (root / "data.bin").write_bytes(os.urandom(100_000))
    wanted = {
        f"{name}/{path.relative_to(root)}": (path.read_bytes(), 0o755 if path.suffix == ".sh" else 0o644)
        for path in root.rglob("*")
        if path.is_file()
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in root.rglob("*"):
            info = zipfile.ZipInfo.from_file(path, path.relative_to(tmp_path))
            if path.suffix == ".sh":
                info.external_attr = 0o100755 << 16
            archive.writestr(info, b"" if path.is_dir() else path.read_bytes())
    contents = []
    for upload in (files_from_dir(root), [(f"{name}.zip", packed.getvalue())], [packed.getvalue()]):
        skill = client.skills.create(files=upload)
        content = client.beta.skills.versions.download(skill.latest_version_id, skill_id=skill.id).read()
        assert unzip(content) == wanted
        contents.append(content)
    assert contents == [contents[0]] * 3


REFUSED = {
    "nothing": ([], "files"),
    "no SKILL.md": ([("a/README.md", b"x")], "SKILL.md"),
    "no front matter": ([("a/SKILL.md", b"# a")], "front matter"),
    "name of upper case": ([("a/SKILL.md", text("Upper"))], "lower-case"),
    "name long": ([("a/SKILL.md", text("n" * 65))], "64"),
    "reserved word": ([("a/SKILL.md", text("claude-helper"))], "reserved"),
    "no description": ([("a/SKILL.md", b"---\nname: a\n---\n")], "description"),
    "description long": ([("a/SKILL.md", text("a", "d" * 1025))], "1024"),
    "description with a tag": ([("a/SKILL.md", text("a", "x <system> y"))], "XML"),
    "traversal": ([("a/SKILL.md", text("a")), ("a/../../x", b"")], ".."),
    "absolute": ([("a/SKILL.md", text("a")), ("/etc/passwd", b"")], "absolute"),
    "twice": ([("a/SKILL.md", text("a")), ("a/x", b"1"), ("a/x", b"2")], "twice"),
    "no zip": ([("a.zip", b"hello")], "zip"),
    "too large": ([("a/SKILL.md", text("a")), ("a/x", bytes(30 * 1024 * 1024))], "31457280"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_skill(client, name) -> None:
    upload, fragment = REFUSED[name]
    with pytest.raises(anthropic.BadRequestError) as refused:
        if upload:
            client.skills.create(files=upload)
        else:
            client.skills.create(files=[], display_name="x")
    assert fragment in refused.value.message
    assert refused.value.type == "invalid_request_error"


def test_a_body_that_is_too_large(client) -> None:
    with pytest.raises(anthropic.ContentTooLargeError):
        client.skills.create(files=[*files("a"), ("a/x", bytes(33 * 1024 * 1024))])


def test_a_bomb(client) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/SKILL.md", text("a"))
        with archive.open("a/zeros", "w") as zeros:
            for _ in range(1000):
                zeros.write(bytes(1024 * 1024))
    assert len(packed.getvalue()) < 2 * 1024 * 1024
    with pytest.raises(anthropic.BadRequestError, match="bytes in all"):
        client.skills.create(files=[("a.zip", packed.getvalue())])


def test_another_workspace_and_a_key_that_reads(client, server, other) -> None:
    skill = client.skills.create(files=files(fresh()))
    paths = [f"/v1/skills/{skill.id}{rest}" for rest in ("", "/versions", "/versions/latest", "/versions/latest/content")]
    for path in paths:
        assert other.get(path).status_code == 404
    assert other.delete(paths[0]).status_code == 404
    assert skill.id not in [each["id"] for each in other.get("/v1/skills").json()["data"]]
    with anthropic.Anthropic(base_url=server.url, api_key=server.read_only_key, max_retries=0) as reader:
        assert reader.skills.retrieve(skill.id).id == skill.id
        for refused in (
            lambda: reader.skills.create(files=files("a")),
            lambda: reader.skills.delete(skill.id),
            lambda: reader.skills.versions.create(skill.id, files=files("a")),
        ):
            with pytest.raises(anthropic.PermissionDeniedError):
                refused()


def test_agents_and_sessions(client, make) -> None:
    name = fresh()
    skill = client.skills.create(files=files(name))
    wanted = {"type": "custom", "skill_id": skill.id}
    agent = make.agent(tools=[TOOLSET], skills=[wanted])
    assert [(each.type, each.skill_id, each.version) for each in agent.skills] == [("custom", skill.id, "latest")]
    session = make.session(agent)
    first = skill.latest_version_id
    assert [each.version for each in session.agent.skills] == [first]
    later = client.skills.versions.create(skill.id, files=files(name, **{"new.txt": b"new"}))
    assert [each.version for each in client.beta.sessions.retrieve(session.id).agent.skills] == [first]
    assert [each.version for each in make.session(agent).agent.skills] == [later.id]
    pinned = {"type": "agent_with_overrides", "id": agent.id, "skills": [{**wanted, "version": first}]}
    created = client.beta.sessions.create(agent=pinned, environment_id=make.environment_id)
    assert [each.version for each in created.agent.skills] == [first]
    client.skills.delete(skill.id)
    for refused in (lambda: make.session(agent), lambda: make.agent(tools=[TOOLSET], skills=[wanted])):
        with pytest.raises(anthropic.BadRequestError, match=skill.id):
            refused()
    assert [each.version for each in client.beta.sessions.retrieve(session.id).agent.skills] == [first]


def test_the_clients_of_the_older_generation(server) -> None:
    """The last client that knows only the older shapes, from an environment of its own."""
    beside = Path(sys.prefix).parent / "venv-legacy" / "bin" / "python"
    python = os.environ.get("SELFSAME_LEGACY_PYTHON") or str(beside)
    assert Path(python).exists(), f"no {python}: ./dev makes it, from requirements-legacy.txt; or set SELFSAME_LEGACY_PYTHON"
    script = Path(__file__).with_name("legacy") / "skills.py"
    environment = {**os.environ, "ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": server.key}
    done = subprocess.run([python, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
