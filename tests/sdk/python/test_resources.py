"""What a session has mounted, and what it gives back, through the official client."""

from __future__ import annotations

import csv
import hashlib
import io
import textwrap
import time
import uuid

import anthropic
import pytest

from conftest import toolset
from support.registry import covers

FILE = "file_011111111111111111111111"
RESOURCE = "sesrsc_011111111111111111111111"
REPOSITORY = {"type": "github_repository", "url": "https://github.com/acme/tool"}


def idle(client, session) -> None:
    deadline = time.monotonic() + 60
    while client.beta.sessions.retrieve(session.id).status != "idle":
        assert time.monotonic() < deadline, "never idle"
        time.sleep(0.05)


@pytest.fixture
def upload(client):
    def upload(content: bytes, name: str = "data.csv") -> str:
        return client.beta.files.upload(file=(name, content)).id

    return upload


@covers("beta.sessions.resources.add", "beta.sessions.resources.list", "beta.sessions.resources.retrieve", "beta.sessions.resources.delete")
def test_files_are_added_and_removed(client, make, upload) -> None:
    session = make.session(tools=[toolset()])
    resources = client.beta.sessions.resources
    assert list(resources.list(session.id)) == []
    file = upload(b"one")
    added = resources.add(session.id, type="file", file_id=file, mount_path="/in/one.csv")
    assert added.id.startswith("sesrsc_01") and added.type == "file"
    assert added.file_id.startswith("file_01") and added.file_id != file
    assert added.mount_path == "/mnt/session/uploads/in/one.csv"
    assert resources.retrieve(added.id, session_id=session.id) == added
    more = [resources.add(session.id, type="file", file_id=file)]
    more += [resources.add(session.id, type="file", file_id=file, mount_path=f"{n}") for n in range(3)]
    assert [found.id for found in resources.list(session.id, limit=2)] == [added.id] + [found.id for found in more]
    assert client.beta.sessions.retrieve(session.id).resources == [added, *more]
    deleted = resources.delete(added.id, session_id=session.id)
    assert (deleted.id, deleted.type) == (added.id, "session_resource_deleted")
    for call in (resources.retrieve, resources.delete):
        with pytest.raises(anthropic.NotFoundError):
            call(added.id, session_id=session.id)
    assert added.file_id not in {found.id for found in client.beta.files.list(scope_id=session.id)}


@covers("beta.sessions.resources.update")
def test_a_repository_is_shown_without_its_token(client, make, raw) -> None:
    token = f"ghp_{uuid.uuid4().hex}"
    session = make.session(resources=[{**REPOSITORY, "authorization_token": token, "checkout": {"type": "branch", "name": "main"}}])
    (shown,) = session.resources
    assert (shown.type, shown.url, shown.mount_path) == ("github_repository", REPOSITORY["url"], "/workspace/tool")
    assert shown.checkout.name == "main"
    updated = client.beta.sessions.resources.update(shown.id, session_id=session.id, authorization_token="ghp_new")
    assert updated.id == shown.id and updated.updated_at > shown.updated_at
    text = raw.get(f"/v1/sessions/{session.id}").text + raw.get(f"/v1/sessions/{session.id}/resources").text
    assert token not in text and "ghp_new" not in text and "authorization_token" not in text
    for call in (
        lambda: client.beta.sessions.resources.delete(shown.id, session_id=session.id),
        lambda: client.beta.sessions.resources.update(shown.id, session_id=session.id, authorization_token="a b"),
        lambda: client.beta.sessions.resources.update(shown.id, session_id=session.id, authorization_token=""),
    ):
        with pytest.raises(anthropic.BadRequestError):
            call()
    client.beta.sessions.archive(session.id)
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.resources.update(shown.id, session_id=session.id, authorization_token="ghp_x")


def test_refusals_and_strangers(client, make, raw, other, upload) -> None:
    session = make.session()
    resources = client.beta.sessions.resources
    with pytest.raises(anthropic.BadRequestError, match="no file"):
        resources.add(session.id, type="file", file_id=FILE)
    answer = raw.post(f"/v1/sessions/{session.id}/resources", json=REPOSITORY)
    assert answer.status_code == 400 and "only `file`" in answer.text
    with pytest.raises(anthropic.NotFoundError):
        resources.retrieve(RESOURCE, session_id=session.id)
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        resources.list(session.id, limit=1001)
    file = resources.add(session.id, type="file", file_id=upload(b"x"))
    with pytest.raises(anthropic.BadRequestError, match="authorization_token"):
        resources.update(file.id, session_id=session.id, authorization_token="t")
    path = f"/v1/sessions/{session.id}/resources"
    body = {"type": "file", "file_id": FILE}
    for answer in (
        other.get(path),
        other.get(f"{path}/{file.id}"),
        other.post(path, json=body),
        other.post(f"{path}/{file.id}", json={"authorization_token": "t"}),
        other.delete(f"{path}/{file.id}"),
    ):
        assert answer.status_code == 404, answer.text
    # Another workspace's file is none.
    theirs = other.post("/v1/files", files={"file": ("a.txt", b"a")}).json()["id"]
    with pytest.raises(anthropic.BadRequestError, match="no file"):
        resources.add(session.id, type="file", file_id=theirs)
    assert client.beta.sessions.retrieve(session.id).resources == [file]
    client.beta.sessions.archive(session.id)
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        resources.add(session.id, type="file", file_id=upload(b"x"))


PROGRAM = """
import csv, matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plot
rows = list(csv.DictReader(open("/mnt/session/uploads/sales.csv")))
total = sum(int(row["units"]) for row in rows)
plot.bar([row["month"] for row in rows], [int(row["units"]) for row in rows])
plot.savefig("/mnt/session/outputs/chart.png")
open("/mnt/session/outputs/report.md", "w").write(f"# Sales\\n\\nTotal: {total} units\\n")
import hashlib
print(hashlib.sha256(open("/mnt/session/outputs/chart.png", "rb").read()).hexdigest())
"""


def test_from_a_table_to_a_chart_and_a_report(client, make, mock, upload) -> None:
    rows = [("month", "units")] + [(month, n * 7) for n, month in enumerate(("jan", "feb", "mar"), 1)]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    file = upload(text.getvalue().encode(), "sales.csv")
    program = textwrap.dedent(PROGRAM).strip()
    mock.rules(
        {"answer": [{"tool": {"name": "bash", "input": {"command": f"python3 - <<'END'\n{program}\nEND"}}}], "times": 1},
        {"answer": "The report is ready."},
    )
    session = make.session(
        tools=[toolset()],
        resources=[{"type": "file", "file_id": file, "mount_path": "/mnt/session/uploads/sales.csv"}],
        initial_events=[{"type": "user.message", "content": [{"type": "text", "text": "Chart it."}]}],
    )
    idle(client, session)
    results = [event for event in client.beta.sessions.events.list(session.id) if event.type == "agent.tool_result"]
    assert len(results) == 1 and not results[0].is_error, results
    # The model was told of the file before it was asked.
    assert "/mnt/session/uploads/sales.csv" in str(mock.body(mock.requests()[0])["system"])
    outputs = {found.filename: found for found in client.beta.files.list(scope_id=session.id) if found.downloadable}
    assert set(outputs) == {"chart.png", "report.md"}
    assert outputs["chart.png"].mime_type == "image/png"
    chart = client.beta.files.download(outputs["chart.png"].id).read()
    assert hashlib.sha256(chart).hexdigest() == results[0].content[0].text.strip()
    assert client.beta.files.download(outputs["report.md"].id).read() == b"# Sales\n\nTotal: 42 units\n"
