"""Starts a server and a scripted model, when the environment names none."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import httpx2

START = 60.0
# Servers that tests start for the tested one to reach listen here. The usual loopback address stays refused.
LOOPBACK = "127.77.0.1"


@dataclass
class Server:
    """Where the server under test is, and the keys to it. Each workspace is invisible to the others."""

    url: str
    key: str
    # A key of another workspace, and one that may only read in the first.
    other_key: str
    read_only_key: str
    mock_url: str
    admin_key: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    directory: Path | None = None
    # Starts the server's own process, and returns when it is ready.
    serve: Callable[[], None] | None = None

    def crash(self) -> None:
        """Ends the server in the middle of whatever it does, and starts it again."""
        assert self.serve is not None, "only a server that was started here"
        process = self.processes.pop()
        process.kill()
        process.wait()
        self.serve()

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.directory is not None:
            remove_sandboxes(self.directory / "serve.log")
        if self.directory is not None and not os.environ.get("SELFSAME_KEEP"):
            shutil.rmtree(self.directory, ignore_errors=True)


def from_environment() -> Server | None:
    url = os.environ.get("SELFSAME_URL")
    if not url:
        return None
    missing = [
        name
        for name in ("SELFSAME_KEY", "SELFSAME_OTHER_KEY", "SELFSAME_READ_ONLY_KEY", "SELFSAME_ADMIN_KEY", "SELFSAME_MOCK_URL")
        if not os.environ.get(name)
    ]
    if missing:
        raise RuntimeError(f"SELFSAME_URL is set, and so must be {', '.join(missing)}")
    return Server(
        url=url,
        key=os.environ["SELFSAME_KEY"],
        other_key=os.environ["SELFSAME_OTHER_KEY"],
        read_only_key=os.environ["SELFSAME_READ_ONLY_KEY"],
        mock_url=os.environ["SELFSAME_MOCK_URL"],
        admin_key=os.environ["SELFSAME_ADMIN_KEY"],
    )


def remove_sandboxes(log: Path) -> None:
    """Those of a server whose database goes, too: nobody else would know of them."""
    deployment = re.search(r"deployment\.id=([0-9a-f-]+)", log.read_text(errors="replace")) if log.exists() else None
    if deployment is None or os.environ.get("SELFSAME_TEST_BACKEND", "docker") != "docker":
        return
    label = f"label=dev.selfsame.deployment={deployment[1]}"
    listed = subprocess.run(["docker", "ps", "-aq", "--filter", label], check=True, capture_output=True, text=True)
    if listed.stdout:
        subprocess.run(["docker", "rm", "-f", *listed.stdout.split()], check=False, capture_output=True)


def binary() -> str:
    named = os.environ.get("SELFSAME_BIN")
    if named:
        return named
    root = Path(__file__).resolve().parents[4]
    for profile in ("release", "debug"):
        candidate = root / "target" / profile / "selfsame"
        if candidate.exists():
            return str(candidate)
    raise RuntimeError("no server: build it (`cargo build`), or set SELFSAME_BIN or SELFSAME_URL")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def allowed_ranges() -> list[str]:
    """What the machine's own settings allow already."""
    return json.loads(os.environ.get("SELFSAME__NET__ALLOWED_RANGES", "[]"))


def start() -> Server:
    """A server of our own: its data directory, its Postgres, its scripted model."""
    program = binary()
    directory = Path(tempfile.mkdtemp(prefix="selfsame-test-"))
    # The private Postgres runs as another user when this one is root.
    directory.chmod(0o755)
    port, mock_port = free_port(), free_port()
    url, mock_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{mock_port}"
    mock_url = os.environ.get("SELFSAME_MOCK_URL") or mock_url
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")},
        "SELFSAME__SERVER__LISTEN": f"127.0.0.1:{port}",
        "SELFSAME__DATA_DIR": str(directory / "data"),
        "SELFSAME__MODEL__BASE_URL": mock_url,
        "SELFSAME__MODEL__API_KEY": "scripted",
        "SELFSAME__SANDBOX__BACKEND": os.environ.get("SELFSAME_TEST_BACKEND", "docker"),
        # So that there is something to download before anything was made.
        "SELFSAME__FILES__DOWNLOAD_UPLOADS": "true",
        # Enough to see a retry, few enough that running out of them does not take long.
        "SELFSAME__MODEL__ATTEMPTS": "3",
        # Servers that never answer are waited for as long as this.
        "SELFSAME__MCP__CONNECT_TIMEOUT_SECONDS": "8",
        "SELFSAME__MCP__CALL_TIMEOUT_SECONDS": "15",
        "SELFSAME__NET__ALLOWED_RANGES": json.dumps([*allowed_ranges(), f"{LOOPBACK}/32"]),
        # Receivers of the tests' own.
        "SELFSAME__WEBHOOKS__ALLOW_HTTP": "true",
        "SELFSAME__WEBHOOKS__ALLOWED_RANGES": '["127.0.0.1/32"]',
    }
    server = Server(url, "", "", "", mock_url, directory=directory)

    def run(name: str, *arguments: str) -> None:
        log = open(directory / f"{name}.log", "ab")
        process = subprocess.Popen(
            [program, *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=directory
        )
        server.processes.append(process)

    try:
        if not os.environ.get("SELFSAME_MOCK_URL"):
            run("mock", "mock", "--listen", f"127.0.0.1:{mock_port}")
        wait_ready(f"{mock_url}/_mock/gates", server, directory / "mock.log")

        def serve() -> None:
            run("serve", "serve")
            wait_ready(f"{url}/readyz", server, directory / "serve.log")

        server.serve = serve
        serve()

        def key(workspace: str, scope: str) -> str:
            made = subprocess.run(
                [program, "keys", "create", "--name", "tests", "--workspace", workspace, "--scope", scope],
                env=environment,
                cwd=directory,
                check=True,
                capture_output=True,
                text=True,
            )
            return made.stdout.strip()

        server.key = key("default", "standard")
        server.read_only_key = key("default", "read_only")
        server.other_key = key("other", "standard")
        server.admin_key = key("default", "admin")
    except BaseException:
        server.stop()
        raise
    return server


def wait_ready(url: str, server: Server, log: Path) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            if httpx2.get(url, timeout=2).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        dead = [process for process in server.processes if process.poll() is not None]
        if dead or time.monotonic() > deadline:
            raise RuntimeError(f"{url} never became ready:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.02)
