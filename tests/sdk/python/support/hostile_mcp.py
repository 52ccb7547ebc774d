"""An MCP server that does whatever a test makes it do, one thread for each connection.

It speaks the older handshake correctly unless told otherwise, so that a test changes one thing at a time:

    with Hostile(tools=lambda: [...], call=lambda server, request: server.json(...)) as server: ...

`tools` gives the entries of the list, `call` answers `tools/call`, `before` may answer any request itself.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable

from .process import LOOPBACK

Answer = Callable[["Exchange", dict[str, Any]], Any]


class Exchange(BaseHTTPRequestHandler):
    """One HTTP exchange, with the ways of answering it."""

    protocol_version = "HTTP/1.1"
    server: "Hostile"  # type: ignore[assignment]

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            # Whoever was tormented has hung up.
            self.close_connection = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        request = json.loads(body)
        self.server.seen.append((self.path, request.get("method"), self.headers.get("authorization")))
        if self.server.before is not None and self.server.before(self, request) is not False:
            return
        method = request.get("method")
        if "id" not in request:
            self.empty(202)
        elif method == "initialize":
            capabilities = {"tools": {"listChanged": True}}
            info = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": {"name": "x", "version": "1"}}
            self.result(request, info, headers={"mcp-session-id": "a-session"})
        elif method == "tools/list":
            self.result(request, {"tools": self.server.tools()})
        elif method == "tools/call" and self.server.call is not None:
            self.server.call(self, request)
        elif method == "tools/call":
            self.result(request, {"content": [{"type": "text", "text": "fine"}]})
        else:
            self.json({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "unknown"}})

    def do_GET(self) -> None:
        self.server.seen.append((self.path, "GET", self.headers.get("authorization")))
        if self.server.get is not None:
            self.server.get(self, {})
        else:
            self.empty(405)

    def do_DELETE(self) -> None:
        self.empty(200)

    def empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", "0")
        self.end_headers()

    def json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.bytes(json.dumps(value).encode(), "application/json", headers)

    def bytes(self, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def result(self, request: dict[str, Any], result: Any, headers: dict[str, str] | None = None) -> None:
        self.json({"jsonrpc": "2.0", "id": request["id"], "result": result}, headers)

    def stream(self, kind: str = "text/event-stream") -> None:
        """Begins an answer without an end; what follows is written to `wfile`."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("connection", "close")
        self.end_headers()

    def event(self, message: Any) -> None:
        self.wfile.write(b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n")
        self.wfile.flush()

    def forever(self, piece: bytes, pause: float = 0.0) -> None:
        """Writes the same again and again, until the other side has had enough or the test is over."""
        while not self.server.over.wait(pause):
            self.wfile.write(piece)
            self.wfile.flush()


TOOL = {"name": "do", "description": "Does it.", "inputSchema": {"type": "object"}}


class Hostile(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        *,
        tools: Callable[[], Any] = lambda: [TOOL],
        call: Answer | None = None,
        before: Answer | None = None,
        get: Answer | None = None,
    ) -> None:
        super().__init__((LOOPBACK, 0), Exchange)
        self.tools, self.call, self.before, self.get = tools, call, before, get
        self.seen: list[tuple[str, str | None, str | None]] = []
        self.over = threading.Event()
        self.url = f"http://{LOOPBACK}:{self.server_address[1]}/mcp"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Hostile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def agent(self, policy: str = "always_allow") -> dict[str, Any]:
        tools = {"type": "mcp_toolset", "mcp_server_name": "hostile", "default_config": {"permission_policy": {"type": policy}}}
        return {"mcp_servers": [{"type": "url", "name": "hostile", "url": self.url}], "tools": [tools]}
