"""A real MCP server for one test, built with the official SDK (`tests/mcp/server.py`, which says what it has).

    def test_something(mcp_server, make):
        with mcp_server(auth=True) as mcp:
            mcp.accept("token-1")                      # the tokens that are good from now on
            agent = make.agent(**mcp.agent())          # an agent with this server and nothing else
            ...
            mcp.accept("token-2")                      # "token-1" has just expired
            ...
            assert mcp.calls() == [{"name": "echo", "arguments": {"text": "hi"}}]
            assert mcp.tokens() == ["token-1", "token-2"]   # as requests showed them, each run of one once

The server listens on an address of loopback's that the tested server is allowed to reach (`process.LOOPBACK`).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parents[4]
DEADLINE = 30.0


def interpreter() -> str:
    return os.environ.get("SELFSAME_MCP_PYTHON") or str(ROOT / ".selfsame" / "venv-mcp" / "bin" / "python")


class McpServer:
    def __init__(self, *, auth: bool = False, transport: str = "http", json_answers: bool = False, legacy: bool = False) -> None:
        arguments = ["--transport", transport]
        arguments += ["--auth"] if auth else []
        arguments += ["--json"] if json_answers else []
        self.process = subprocess.Popen(
            [interpreter(), str(ROOT / "tests" / "mcp" / "server.py"), *arguments], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the MCP server ended with {self.process.wait()}")
        told = json.loads(line)
        self.url: str = told["url"]
        self.http = httpx2.Client(base_url=told["control"], timeout=DEADLINE, trust_env=False)
        self.name = "tests"
        if legacy:
            self._put("legacy", True)

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()

    def _put(self, what: str, value: Any) -> None:
        self.http.put(f"/{what}", json=value).raise_for_status()

    def _get(self, what: str) -> Any:
        response = self.http.get(f"/{what}")
        response.raise_for_status()
        return response.json()

    def accept(self, *tokens: str) -> None:
        """These bearer tokens are good from now on, and no others."""
        self._put("tokens", list(tokens))

    def add_tool(self, name: str) -> None:
        """The server has one more tool, and tells nobody."""
        self.http.post("/tools", json=name).raise_for_status()

    def release(self) -> None:
        """Lets every call of `wait` go on."""
        self.http.post("/release").raise_for_status()

    def requests(self) -> list[dict[str, Any]]:
        return self._get("requests")

    def methods(self) -> list[str]:
        """RPC methods in the order they came."""
        return [request["method"] for request in self.requests() if request["method"]]

    def tokens(self) -> list[str | None]:
        """The tokens that requests came with; one that several came with in a row counts once."""
        return [token for token, _ in itertools.groupby(request["token"] for request in self.requests())]

    def calls(self) -> list[dict[str, Any]]:
        return self._get("calls")

    def wait_calls(self, count: int) -> list[dict[str, Any]]:
        return self._wait("calls", count)

    def wait_cancelled(self, count: int) -> list[str]:
        return self._wait("cancelled", count)

    def _wait(self, what: str, count: int) -> Any:
        deadline = time.monotonic() + DEADLINE
        while len(found := self._get(what)) < count:
            assert time.monotonic() < deadline, f"only {found}"
            time.sleep(0.02)
        return found

    def declaration(self, name: str | None = None) -> dict[str, str]:
        return {"type": "url", "name": name or self.name, "url": self.url}

    def toolset(self, policy: str | None = None, name: str | None = None, **configs: str) -> dict[str, Any]:
        """A toolset for it with a policy, or the API's own default, and exceptions by tool name."""
        toolset: dict[str, Any] = {"type": "mcp_toolset", "mcp_server_name": name or self.name}
        if policy is not None:
            toolset["default_config"] = {"permission_policy": {"type": policy}}
        toolset["configs"] = [{"name": tool, "permission_policy": {"type": each}} for tool, each in configs.items()]
        return toolset

    def agent(self, policy: str | None = "always_allow", **configs: str) -> dict[str, Any]:
        """The fields of an agent that has this server."""
        return {"mcp_servers": [self.declaration()], "tools": [self.toolset(policy, **configs)]}
