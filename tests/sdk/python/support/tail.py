"""Event streams read in the background, with waits that have a deadline instead of sleeps."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any, Callable, Iterable

import httpx2

from .order import Event, short

DEADLINE = 20.0
NO_REUSE = httpx2.Limits(max_keepalive_connections=0)


class Record(dict):
    """One event as the wire had it; `sse_id` and `sse_event` are its other SSE lines."""

    sse_id: str | None = None
    sse_event: str | None = None


class Gone(AssertionError):
    """The stream ended, or the deadline passed, before what was waited for."""


class Tail:
    """Reads a stream in a thread. `source` yields records or SDK events and comes from `response`."""

    def __init__(self, source: Iterable[Any], response: httpx2.Response, name: str = "stream") -> None:
        self.records: list[Event] = []
        self.raw: list[Any] = []
        self.error: BaseException | None = None
        self.ended = False
        self.name = name
        self._closed = False
        self.response = response
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(source,), daemon=True)
        self._thread.start()

    def _read(self, source: Iterable[Any]) -> None:
        try:
            for item in source:
                record = item if isinstance(item, dict) else item.to_dict(mode="json")
                with self._changed:
                    self.records.append(record)
                    self.raw.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            if not self._closed:
                self.error = error
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def wait(self, wanted: Callable[[Event], bool], *, count: int = 1, timeout: float = DEADLINE, after: int = 0) -> Event:
        """Returns the `count`-th matching record at or after position `after`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [record for record in self.records[after:] if wanted(record)]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if self.error is not None:
                    raise Gone(f"{self.name} failed: {self.error!r}; seen {self.shape()}") from self.error
                if self.ended or left <= 0:
                    how = "ended" if self.ended else f"said nothing like it in {timeout} s"
                    raise Gone(f"{self.name} {how}; seen {self.shape()}")
                self._changed.wait(left)

    def wait_type(self, name: str, **options: Any) -> Event:
        return self.wait(lambda event: event["type"] == name, **options)

    def wait_idle(self, reason: str | None = None, **options: Any) -> Event:
        """Waits for a `session.status_idle`, with this stop reason if one is given."""
        return self.wait(
            lambda event: event["type"] == "session.status_idle"
            and reason in (None, event["stop_reason"]["type"]),
            **options,
        )

    def wait_end(self, timeout: float = DEADLINE) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self.ended:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Gone(f"{self.name} did not end in {timeout} s; seen {self.shape()}")
                self._changed.wait(left)

    def count(self) -> int:
        with self._changed:
            return len(self.records)

    def shape(self) -> list[str]:
        return [short(record) if "stop_reason" in record or "error" in record else record["type"] for record in self.records]

    def close(self) -> None:
        self._closed = True
        try:
            # Closing a socket does not wake up a thread that reads it; shutting it down does. The clients keep no
            # connection for later (`NO_REUSE`), so it cannot be somebody else's by now.
            network = self.response.extensions["network_stream"].get_extra_info("socket")
            network.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already
        self._thread.join(5)
        self.response.close()

    def __enter__(self) -> "Tail":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sse(lines: Iterable[str]) -> Iterable[Record]:
    """The records of an SSE body, comments left out."""
    fields: dict[str, str] = {}
    for line in lines:
        line = line.rstrip("\r\n")
        if line:
            if not line.startswith(":"):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                fields[name] = fields[name] + "\n" + value if name == "data" and "data" in fields else value
            continue
        if "data" in fields:
            record = Record(json.loads(fields["data"]))
            record.sse_id, record.sse_event = fields.get("id"), fields.get("event")
            yield record
        fields = {}


def open_raw(http: httpx2.Client, path: str, *, headers: dict[str, str] | None = None, params: Any = None, name: str = "stream") -> Tail:
    """Opens a stream and returns when its headers are there, so that nothing sent afterwards can be missed."""
    request = http.build_request("GET", path, headers=headers, params=params, timeout=httpx2.Timeout(10, read=120))
    response = http.send(request, stream=True)
    if response.status_code != 200:
        response.read()
        raise AssertionError(f"{path}: {response.status_code} {response.text}")
    return Tail(sse(response.iter_lines()), response, name=name)


def open_sdk(client: Any, session_id: str, **options: Any) -> Tail:
    """The same through the SDK's own stream."""
    stream = client.beta.sessions.events.stream(session_id, **options)
    return Tail(stream, stream.response, name="SDK stream")
