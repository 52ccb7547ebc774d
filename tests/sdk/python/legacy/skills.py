"""Every method for skills of a client of the older generation, in strict mode. Run by test_skills.py."""

from __future__ import annotations

import inspect
import io
import uuid
import zipfile

import anthropic

client = anthropic.Anthropic(max_retries=0, timeout=60, _strict_response_validation=True)
called: set[str] = set()


def spy(path: str, owner: type) -> None:
    for name, method in inspect.getmembers(owner, inspect.isfunction):
        if name.startswith("_"):
            continue

        def recorded(*arguments, original=method, key=f"{path}.{name}", **options):
            called.add(key)
            return original(*arguments, **options)

        setattr(owner, name, recorded)


skills, versions = client.beta.skills, client.beta.skills.versions
owners = {"skills": type(skills), "versions": type(versions)}
wanted = {
    f"{path}.{name}"
    for path, owner in owners.items()
    for name, _ in inspect.getmembers(owner, inspect.isfunction)
    if not name.startswith("_")
}
for path, owner in owners.items():
    spy(path, owner)


def refused(error: type, call) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"not refused with {error}")


name = f"skill-{uuid.uuid4().hex[:12]}"


def files(description: str):
    return [(f"{name}/SKILL.md", f"---\nname: {name}\ndescription: {description}\n---\n".encode())]


skill = skills.create(files=files("First."), display_title="My skill")
assert (skill.type, skill.display_title, skill.source) == ("skill", "My skill", "custom"), skill
assert skill.latest_version is not None and skill.latest_version.isdigit(), skill
assert skills.retrieve(skill.id).to_dict() == skill.to_dict()
page = skills.list(limit=1)
assert page.data[0].id == skill.id, page
assert skill.id not in [each.id for each in skills.list(source="anthropic")]

first = versions.retrieve(skill.latest_version, skill_id=skill.id)
assert first.id.startswith("skillver_01") and first.version == skill.latest_version, first
assert (first.name, first.directory, first.description) == (name, name, "First."), first
second = versions.create(skill.id, files=files("Second."))
assert skills.retrieve(skill.id).latest_version == second.version
assert [each.version for each in versions.list(skill.id, limit=1)] == [second.version, first.version]
with zipfile.ZipFile(io.BytesIO(versions.download(first.version, skill_id=skill.id).read())) as archive:
    assert archive.namelist() == [f"{name}/SKILL.md"], archive.namelist()
refused(anthropic.BadRequestError, lambda: versions.create(skill.id, files=[("SKILL.md", b"---\nname: x\ndescription: y\n---\n")]))

# A skill goes after its versions.
refused(anthropic.BadRequestError, lambda: skills.delete(skill.id))
for version in (second, first):
    deleted = versions.delete(version.version, skill_id=skill.id)
    assert (deleted.id, deleted.type) == (version.version, "skill_version_deleted"), deleted
assert skills.retrieve(skill.id).latest_version is None
gone = skills.delete(skill.id)
assert (gone.id, gone.type) == (skill.id, "skill_deleted"), gone
refused(anthropic.NotFoundError, lambda: skills.retrieve(skill.id))
assert called == wanted, wanted - called
