"""Tables of refusals: what is sent, and what must come back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx2

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    501: "api_error",
}


@dataclass(frozen=True)
class Case:
    """One refused request. Strings in `path` and `body` may name objects of the test in braces, as in `{session}`."""

    name: str
    method: str = "POST"
    path: str = ""
    body: Any = None
    content: bytes | None = None
    query: str = ""
    headers: dict[str, Any] = field(default_factory=dict)
    status: int | tuple[int, ...] = 400
    fragment: str | tuple[str, ...] = ()
    code: str | None = None
    no_retry: bool = False

    def __str__(self) -> str:
        return self.name


def fill(value: Any, names: dict[str, str]) -> Any:
    """Puts names into strings, keys included."""
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, dict):
        return {fill(key, names): fill(each, names) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill(each, names) for each in value]
    return value


def send(http: httpx2.Client, case: Case, names: dict[str, str]) -> httpx2.Response:
    path = fill(case.path, names) + (f"?{fill(case.query, names)}" if case.query else "")
    headers = {"content-type": "application/json"} if case.body is not None or case.content is not None else {}
    headers |= case.headers
    content = case.content
    if content is None and case.body is not None:
        content = json.dumps(fill(case.body, names)).encode()
    elif content is not None:
        for name, text in names.items():
            content = content.replace(b"{" + name.encode() + b"}", text.encode())
    return http.request(case.method, path, content=content, headers=headers)


def refused(response: httpx2.Response, case: Case, names: dict[str, str] | None = None) -> None:
    """Checks status, envelope, kind, fragment of the message, code, and that the client is told what to do."""
    allowed = case.status if isinstance(case.status, tuple) else (case.status,)
    assert response.status_code in allowed, f"{case.name}: {response.status_code} {response.text[:500]}"
    envelope(response)
    error = response.json()["error"]
    assert error["type"] == TYPES[response.status_code], error
    fragments = (case.fragment,) if isinstance(case.fragment, str) else case.fragment
    for fragment in fragments:
        wanted = fill(fragment, names or {})
        assert wanted.lower() in error["message"].lower(), f"{case.name}: {wanted!r} is not in {error['message']!r}"
    if case.code is not None:
        assert (error.get("details") or {}).get("error_code") == case.code, error
    if case.no_retry or response.status_code in (409, 501):
        assert response.headers.get("x-should-retry") == "false"


def envelope(response: httpx2.Response) -> None:
    """Every refusal has the same form, whoever made it."""
    assert response.headers["content-type"].startswith("application/json"), response.headers
    body = response.json()
    assert body["type"] == "error" and set(body) >= {"type", "error", "request_id"}, body
    assert body["request_id"] == response.headers["request-id"] and body["request_id"].startswith("req_")
    assert isinstance(body["error"]["type"], str)
    message = body["error"]["message"]
    assert isinstance(message, str) and message.strip(), "a refusal says what is wrong"
    for leak in ("panicked", "sqlx", "src/", ".rs:", "Postgres", "constraint"):
        assert leak not in message, f"the message shows our inside: {message!r}"
