"""Files through the official client, in both generations of answers.

The server of this suite lets uploads be downloaded (`files.download_uploads`); that it does not by default is
tested in the server's own tests.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import os
import tempfile
from pathlib import Path

import anthropic
import pytest

from support.registry import covers

LEGACY = "files-api-2025-04-14"
CONTENT = "größe,b\r\n1,2\r\n\0".encode()


@covers("files.upload", "files.retrieve_metadata", "files.list", "files.download", "files.delete")
def test_a_file_comes_and_goes(client) -> None:
    file = client.files.upload(file=("data.csv", CONTENT, "text/csv"))
    assert file.id.startswith("file_01") and file.type == "file"
    assert (file.filename, file.mime_type, file.size_bytes) == ("data.csv", "text/csv", len(CONTENT))
    assert file.downloadable is False and file.expires_at is None
    assert client.files.retrieve_metadata(file.id) == file
    assert client.files.list(limit=1).data == [file]
    assert client.files.list(ids=[file.id]).data == [file]
    content = client.files.download(file.id)
    assert content.read() == CONTENT
    assert content.headers["content-type"] == "text/csv"
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.type) == (file.id, "file_deleted")
    for gone in (client.files.retrieve_metadata, client.files.download, client.files.delete):
        with pytest.raises(anthropic.NotFoundError):
            gone(file.id)
    assert client.files.list(ids=[file.id]).data == []


@covers("beta.files.upload", "beta.files.retrieve_metadata", "beta.files.list", "beta.files.download", "beta.files.delete")
@pytest.mark.parametrize("betas", [[], [LEGACY], [LEGACY, "managed-agents-2026-04-01"]], ids=str)
def test_the_same_below_beta(client, betas) -> None:
    files, options = client.beta.files, {"betas": betas} if betas else {}
    file = files.upload(file=("report.md", CONTENT), **options)
    assert (file.mime_type, file.scope) == ("text/markdown", None)
    assert files.retrieve_metadata(file.id, **options) == file
    raw = files.with_raw_response.list(limit=1, **options)
    page = raw.parse()
    assert page.data == [file]
    keys = set(raw.http_response.json())
    assert keys == ({"data", "has_more", "first_id", "last_id"} if betas else {"data", "next_page"})
    assert files.download(file.id, **options).read() == CONTENT
    assert files.delete(file.id, **options).id == file.id


def test_the_asynchronous_client(server) -> None:
    async def run() -> None:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key=server.key, _strict_response_validation=True) as client:
            file = await client.files.upload(file=("a.txt", b"abc"))
            assert [each.id async for each in client.files.list(limit=1, ids=anthropic.omit)][0] == file.id
            content = await client.files.download(file.id)
            assert await content.read() == b"abc"
            await client.files.delete(file.id)

    asyncio.run(run())


def test_what_can_be_uploaded(client) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "Überblick 数据.json"
        path.write_bytes(b"{}")
        named = client.files.upload(file=path)
        assert (named.filename, named.mime_type) == (path.name, "application/json")
        with path.open("rb") as opened:
            assert client.files.upload(file=opened).size_bytes == 2
    assert client.files.upload(file=b"").size_bytes == 0
    assert client.files.upload(file=io.BytesIO(b"abc")).size_bytes == 3
    inside = client.files.upload(file=("../../etc/passwd", b"x"))
    assert inside.filename == "passwd"
    twins = [client.files.upload(file=("twin", b"x")) for _ in range(2)]
    assert twins[0].id != twins[1].id


def test_expiry_is_sent_before_the_file(client) -> None:
    file = client.files.upload(file=("a.txt", b"x"), expires_in_seconds=3600)
    assert file.expires_at - file.created_at == datetime.timedelta(hours=1)
    for seconds in (3599, 7_776_001, 0, -1):
        with pytest.raises(anthropic.BadRequestError, match="expires_in_seconds"):
            client.files.upload(file=("a.txt", b"x"), expires_in_seconds=seconds)


@pytest.mark.parametrize("name", ["..", "a:b", "a<b", "a|b", "a*b", "a?b", "a\\b", "x" * 256])
def test_names_that_are_refused(client, name) -> None:
    with pytest.raises(anthropic.BadRequestError, match="filename"):
        client.files.upload(file=(name, b"x"))


def test_pages_while_files_are_deleted(client) -> None:
    made = [client.files.upload(file=(f"{number}.txt", b"x")).id for number in range(5)]
    found = []
    for file in client.files.list(limit=2):
        found.append(file.id)
        client.files.delete(file.id)
        if file.id == made[0]:
            break
    assert found[:5] == list(reversed(made))


def test_pages_of_the_first_generation(client, raw) -> None:
    made = [client.files.upload(file=(f"{number}.txt", b"x")).id for number in range(3)]
    headers = {"anthropic-beta": LEGACY}
    page = raw.get("/v1/files", params={"limit": 2, "beta": "true"}, headers=headers).json()
    assert [each["id"] for each in page["data"]] == [made[2], made[1]]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, made[2], made[1])
    page = raw.get("/v1/files", params={"limit": 1, "after_id": made[1]}, headers=headers).json()
    assert [each["id"] for each in page["data"]] == [made[0]]
    page = raw.get("/v1/files", params={"before_id": made[1], "limit": 1}, headers=headers).json()
    assert [each["id"] for each in page["data"]] == [made[2]]


def test_scopes(client, make) -> None:
    session = make.session()
    assert client.beta.files.list(scope_id=session.id).data == []
    with pytest.raises(anthropic.BadRequestError, match="scope_id"):
        client.beta.files.list(scope_id="sesn_nonsense")


def test_another_workspace_and_a_key_that_reads(client, server, other) -> None:
    file = client.files.upload(file=("a.txt", b"x"))
    for response in (
        other.get(f"/v1/files/{file.id}"),
        other.get(f"/v1/files/{file.id}/content"),
        other.delete(f"/v1/files/{file.id}"),
    ):
        assert response.status_code == 404, response.text
    assert other.get("/v1/files", params={"ids[]": file.id}).json()["data"] == []
    with anthropic.Anthropic(base_url=server.url, api_key=server.read_only_key, max_retries=0) as reader:
        assert reader.files.retrieve_metadata(file.id).id == file.id
        for refused in (lambda: reader.files.upload(file=b"x"), lambda: reader.files.delete(file.id)):
            with pytest.raises(anthropic.PermissionDeniedError):
                refused()


def test_a_file_that_is_too_large(client) -> None:
    """The client sends all of it before it reads the answer."""
    with tempfile.TemporaryFile() as large:
        os.truncate(large.fileno(), 501 * 1024 * 1024)
        with pytest.raises(anthropic.ContentTooLargeError):
            client.files.upload(file=("large.bin", large))


def test_a_large_file_goes_both_ways(client) -> None:
    content = os.urandom(1024 * 1024) * 40
    file = client.files.upload(file=("large.bin", content))
    with client.files.with_streaming_response.download(file.id) as response:
        at = 0
        for piece in response.iter_bytes():
            assert content.startswith(piece, at)
            at += len(piece)
    assert at == len(content)
    client.files.delete(file.id)
