"""Which SDK methods exist, which test covers which, and the exceptions that only ever shrink."""

from __future__ import annotations

import inspect
from typing import Any, Callable, TypeVar

import anthropic
from anthropic._resource import AsyncAPIResource, SyncAPIResource

Test = TypeVar("Test", bound=Callable[..., Any])

# Dotted path of a method -> names of the tests that say they call it.
COVERED: dict[str, list[str]] = {}

# The resources that this server offers; every public method below them needs a test.
ROOTS = (
    "models",
    "files",
    "skills",
    "beta.agents",
    "beta.environments",
    "beta.files",
    "beta.models",
    "beta.organization.webhooks",
    "beta.sessions",
    "beta.skills",
    "beta.vaults",
    "beta.webhooks",
)

# Methods of work to come. Remove a line when its feature arrives; never add one.
NOT_YET = {
    "beta.environments.work.ack",
    "beta.environments.work.heartbeat",
    "beta.environments.work.list",
    "beta.environments.work.poll",
    "beta.environments.work.poller",
    "beta.environments.work.retrieve",
    "beta.environments.work.stats",
    "beta.environments.work.stop",
    "beta.environments.work.update",
    "beta.environments.work.worker",
}


def covers(*methods: str) -> Callable[[Test], Test]:
    """Says that a test calls these methods, e.g. `beta.agents.create`. A test that says so and does not, fails."""

    def mark(test: Test) -> Test:
        for method in methods:
            COVERED.setdefault(method, []).append(test.__name__)
        setattr(test, "covers", methods)
        return test

    return mark


def resolve(client: Any, path: str) -> Any:
    found = client
    for part in path.split("."):
        found = getattr(found, part)
    return found


def methods() -> set[str]:
    """Every public method of the SDK below `ROOTS`, of the plain and of the asynchronous client."""
    clients = (
        anthropic.Anthropic(api_key="none", base_url="http://localhost"),
        anthropic.AsyncAnthropic(api_key="none", base_url="http://localhost"),
    )
    found: set[str] = set()
    for client in clients:
        for root in ROOTS:
            _walk(resolve(client, root), root, found)
    return found


def _walk(resource: Any, path: str, found: set[str]) -> None:
    for name in dir(type(resource)):
        if name.startswith("_") or name in ("with_raw_response", "with_streaming_response"):
            continue
        member = inspect.getattr_static(type(resource), name)
        if inspect.isfunction(member):
            found.add(f"{path}.{name}")
            continue
        value = getattr(resource, name)
        if isinstance(value, (SyncAPIResource, AsyncAPIResource)):
            _walk(value, f"{path}.{name}", found)
