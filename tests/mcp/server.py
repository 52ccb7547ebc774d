"""A real MCP server, built with the official Python SDK, that tests can look into.

It runs in a virtual environment of its own (`./dev sdk` makes it from `requirements.txt`; its interpreter is named by
`SELFSAME_MCP_PYTHON`). Started, it prints one line of JSON with its addresses and serves until it is killed:

    $ python tests/mcp/server.py --transport http --auth
    {"url": "http://127.77.0.1:41567/mcp", "control": "http://127.77.0.1:41567/control"}

`--transport` is `http` (streamable HTTP, which speaks both lifecycles: `server/discover` of 2026-07-28 and
`initialize` of the versions before) or `sse` (the older HTTP+SSE). With `--auth` the SDK's own middleware wants a
bearer token on every request; which ones are good is said at run time:

    PUT  /control/tokens    ["a", "b"]   these and no others, from now on: so a token expires
    PUT  /control/legacy    true         requests of the newer lifecycle are answered as an older server would
    GET  /control/requests               every request to the MCP address: HTTP method, RPC method, token, status
    GET  /control/calls                  every call of a tool, in order: name and arguments
    POST /control/release                lets calls of `wait` go on
    POST /control/tools     "name"       adds a tool of this name and tells those who listen

From Python tests use `support.mcp_server`, which wraps all of this; from elsewhere start it like any other program.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import AudioContent, CallToolResult, EmbeddedResource, ResourceLink, TextContent, TextResourceContents
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

# An address of loopback's that the tested server is allowed to reach, while it is refused the usual one.
HOST = "127.77.0.1"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

tokens: set[str] = set()
requests: list[dict[str, Any]] = []
calls: list[dict[str, Any]] = []
cancelled: list[str] = []
legacy = False
# Made in the loop that uses it.
released: asyncio.Event


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        if token not in tokens:
            return None
        return AccessToken(token=token, client_id="tests", scopes=[])


class Weather(BaseModel):
    place: str
    degrees: int


def note(tool: str, /, **arguments: Any) -> None:
    calls.append({"name": tool, "arguments": arguments})


def add_tools(server: MCPServer) -> None:
    @server.tool()
    def echo(text: str) -> str:
        """Says it again."""
        note("echo", text=text)
        return text

    @server.tool()
    def weather(place: str) -> Weather:
        """The weather at a place, as structured content."""
        note("weather", place=place)
        return Weather(place=place, degrees=7)

    @server.tool()
    def whoami() -> str:
        """The bearer token that the call came with."""
        note("whoami")
        token = get_access_token()
        return token.token if token else "nobody"

    @server.tool()
    def fails() -> str:
        """Always fails."""
        note("fails")
        raise ToolError("it was bound to fail")

    @server.tool()
    def letters(count: int) -> str:
        """So many letters."""
        note("letters", count=count)
        return ("x" * 99 + "\n") * (count // 100) + "x" * (count % 100)

    @server.tool()
    def everything() -> CallToolResult:
        """Content of every kind."""
        note("everything")
        resource = TextResourceContents(uri="memo://one", mime_type="text/plain", text="a resource")
        return CallToolResult(
            content=[
                TextContent(type="text", text="some text"),
                Image(data=PNG).to_image_content(),
                AudioContent(type="audio", data="AAAA", mime_type="audio/wav"),
                EmbeddedResource(type="resource", resource=resource),
                ResourceLink(type="resource_link", uri="https://example.com/two", name="two"),
            ]
        )

    @server.tool()
    async def wait(name: str) -> str:
        """Waits until it is released, or cancelled."""
        note("wait", name=name)
        try:
            await released.wait()
        except BaseException:
            cancelled.append(name)
            raise
        return f"{name} was released"

    @server.tool()
    async def grow(name: str, ctx: Context) -> str:
        """Adds a tool of this name, and says so to those who listen."""
        note("grow", name=name)
        add_tool(server, name)
        await ctx.notify_tools_changed()
        await ctx.session.send_tool_list_changed()
        return f"there is {name} now"


def add_tool(server: MCPServer, name: str) -> None:
    @server.tool(name=name)
    def added() -> str:
        """A tool that was not there from the start."""
        note(name)
        return f"this is {name}"


class Watched:
    """Notes what comes in and how it is answered."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/control"):
            await self.app(scope, receive, send)
            return
        body = b""
        more = scope["method"] == "POST"
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        rpc = json.loads(body).get("method") if body else None
        entry = {
            "http": scope["method"],
            "path": scope["path"],
            "method": rpc,
            "token": headers.get("authorization", "").removeprefix("Bearer ") or None,
            "version": headers.get("mcp-protocol-version"),
            "status": None,
        }
        requests.append(entry)
        if legacy and rpc == "server/discover":
            entry["status"] = 400
            await Response("Bad Request: no session", 400)(scope, receive, send)
            return

        sent = False

        async def replay() -> Any:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
            await send(message)

        await self.app(scope, replay, watched)


def control(server: MCPServer) -> list[Route]:
    async def put_tokens(request: Request) -> Response:
        wanted = await request.json()
        tokens.clear()
        tokens.update(wanted)
        return Response(status_code=204)

    async def put_legacy(request: Request) -> Response:
        global legacy
        legacy = await request.json()
        return Response(status_code=204)

    async def release(_: Request) -> Response:
        released.set()
        return Response(status_code=204)

    async def post_tools(request: Request) -> Response:
        add_tool(server, await request.json())
        return Response(status_code=204)

    def shown(what: list[Any]) -> Any:
        async def show(_: Request) -> Response:
            return JSONResponse(what)

        return show

    return [
        Route("/control/tokens", put_tokens, methods=["PUT"]),
        Route("/control/legacy", put_legacy, methods=["PUT"]),
        Route("/control/requests", shown(requests)),
        Route("/control/calls", shown(calls)),
        Route("/control/cancelled", shown(cancelled)),
        Route("/control/release", release, methods=["POST"]),
        Route("/control/tools", post_tools, methods=["POST"]),
    ]


async def main() -> None:
    global released
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transport", choices=["http", "sse"], default="http")
    parser.add_argument("--auth", action="store_true", help="want a bearer token")
    parser.add_argument("--json", action="store_true", help="answer with JSON and not with event streams")
    parser.add_argument("--host", default=HOST)
    options = parser.parse_args()
    released = asyncio.Event()
    listener = socket.create_server((options.host, 0))
    base = f"http://{options.host}:{listener.getsockname()[1]}"
    auth = None
    if options.auth:
        # The verifier knows its tokens; they name no audience.
        auth = AuthSettings(
            issuer_url=f"{base}/issuer", resource_server_url=f"{base}/mcp", validate_token_resource=False
        )
    server = MCPServer("tests", log_level="WARNING", auth=auth, token_verifier=Verifier() if options.auth else None)
    add_tools(server)
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    if options.transport == "http":
        app = server.streamable_http_app(json_response=options.json, transport_security=security)
        path = "/mcp"
    else:
        app = server.sse_app(transport_security=security)
        path = "/sse"
    app.router.routes.extend(control(server))
    print(json.dumps({"url": base + path, "control": f"{base}/control"}), flush=True)
    await uvicorn.Server(uvicorn.Config(Watched(app), log_level="warning", lifespan="on")).serve([listener])


if __name__ == "__main__":
    asyncio.run(main())
