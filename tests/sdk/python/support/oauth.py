"""Scripted OAuth grants for one test: a token endpoint each, and an MCP server that takes their tokens.

    def test_something(oauth):
        grant = oauth.grant(expires_in=3600)            # see crates/mock/README.md for what it can be told
        auth = grant.auth(mcp_server_url=...)           # an `mcp_oauth` credential for it
        grant.instead("token", {"status": 400, "body": '{"error": "invalid_grant"}'})
        assert len(grant.standing()["token_requests"]) == 1

It listens on an address of loopback's that the tested server is allowed to reach (`process.LOOPBACK`).
"""

from __future__ import annotations

import subprocess
import time
from typing import Any

import httpx2

from support import process

DEADLINE = 30.0


class Grant:
    def __init__(self, oauth: OAuth, standing: dict[str, Any]) -> None:
        self.oauth = oauth
        self.name: str = standing["name"]
        self.first = standing
        self.mcp_server_url: str = oauth.url + standing["mcp_server"]
        self.token_endpoint: str = oauth.url + standing["token_endpoint"]

    def auth(self, **fields: Any) -> dict[str, Any]:
        """The `auth` of a credential with its first tokens."""
        return {
            "type": "mcp_oauth",
            "mcp_server_url": self.mcp_server_url,
            "access_token": self.first["access_token"],
            "refresh": {
                "client_id": "client",
                "refresh_token": self.first["refresh_token"],
                "token_endpoint": self.token_endpoint,
                "token_endpoint_auth": {"type": "none"},
            },
            **fields,
        }

    def standing(self) -> dict[str, Any]:
        return self.oauth.get(f"/_mock/oauth/{self.name}")

    def expire(self) -> None:
        """The access token is of no use any more."""
        self.oauth.post(f"/_mock/oauth/{self.name}/expire", {})

    def instead(self, endpoint: str, *answers: dict[str, Any]) -> None:
        """The next answers of `token` or `mcp`."""
        self.oauth.post(f"/_mock/oauth/{self.name}/instead", {"endpoint": endpoint, "answers": answers})


class OAuth:
    def __init__(self) -> None:
        port = process.free_port()
        self.url = f"http://{process.LOOPBACK}:{port}"
        self.process = subprocess.Popen(
            [process.binary(), "mock", "--listen", f"{process.LOOPBACK}:{port}"], stdout=subprocess.DEVNULL
        )
        self.http = httpx2.Client(base_url=self.url, timeout=DEADLINE, trust_env=False)
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                self.get("/_mock/gates")
                return
            except httpx2.TransportError:
                assert self.process.poll() is None and time.monotonic() < deadline, "the OAuth server does not start"
                time.sleep(0.02)

    def stop(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()

    def get(self, path: str) -> Any:
        response = self.http.get(path)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: Any) -> Any:
        response = self.http.post(path, json=body)
        response.raise_for_status()
        return response.json()

    def grant(self, **terms: Any) -> Grant:
        return Grant(self, self.post("/_mock/oauth", terms))
