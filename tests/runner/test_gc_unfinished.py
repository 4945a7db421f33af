"""What killed writers leave half written is told by gc and freed a day later, on disk and on S3."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.s3 import serve_moto
from tests.s3_proxy import Proxy, faulty
from transfusion.runner.gc import collect_garbage
from transfusion.storage.s3_client import patiently
from transfusion.storage.store import open_store

DATA = "data_pipelines.pixels/pool/data"

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from transfusion.storage.store import open_store
shutil.copyfile = lambda source, target: (
    Path(target).write_bytes(b"half of it"), os.kill(os.getpid(), signal.SIGKILL))
open_store(sys.argv[1]).put_file(sys.argv[2], Path(sys.argv[3]))
"""


def collect(uri: str, *, delete: bool = False) -> list[str]:
    return list(collect_garbage(uri, older_than_hours=1e6, delete=delete))


def test_the_temporary_file_of_a_killed_writer_goes_after_a_day(tmp_path: Path) -> None:
    root = tmp_path / "store"
    whole = tmp_path / "whole"
    whole.write_bytes(b"all of it")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), f"{DATA}/ab/x.parquet", str(whole)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = (root / DATA / "ab").iterdir()
    assert left.read_bytes() == b"half of it"
    others = [root / "laion" / left.name, root / DATA / ".tmp-notes"]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"somebody else's")
    # Its writer may still be at it.
    assert "0 unfinished writes older than 24 h" in collect(str(root), delete=True)[-1]
    old = time.time() - 25 * 3600
    for place in (left, *others):
        os.utime(place, (old, old))
    line, total = collect(str(root))
    assert line.split() == ["garbage", "10", f"{DATA}/ab/{left.name}", "(unfinished)"]
    assert "1 unfinished writes older than 24 h; delete them with --delete" in total
    assert left.exists()
    assert collect(str(root), delete=True)[0].startswith("deleted")
    assert not left.parent.exists()
    assert all(other.exists() for other in others)


def begin_upload(key: str) -> str:
    """An upload of one part whose writer is gone; its name."""

    def ask(method: str, **asked: Any) -> Callable[[Any], Any]:
        return lambda fs: fs.call_s3(method, Bucket="bucket", Key=key, **asked)

    upload = patiently("write", key, ask("create_multipart_upload"))["UploadId"]
    patiently("write", key, ask("upload_part", UploadId=upload, PartNumber=1, Body=b"half"))
    return str(upload)


def test_the_parts_of_a_killed_upload_go_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # moto says of every upload that it was begun in 2010.
    with serve_moto(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        keys = [f"mine/{DATA}/aa/x", f"mine/{DATA}/bb/y", "mine/raw.tar", f"others/{DATA}/z"]
        for key in keys:
            begin_upload(key)
        store = open_store("s3://bucket/mine")
        store.write(f"{DATA}/aa/whole", b"whole")
        *lines, total = collect(store.uri)
        assert [line.split() for line in lines] == [
            ["garbage", "parts", f"{DATA}/aa/x", "(unfinished)"],
            ["garbage", "parts", f"{DATA}/bb/y", "(unfinished)"],
        ]
        assert "2 unfinished writes older than 24 h; delete" in total
        gone = store.unfinished()[0]
        collect(store.uri, delete=True)
        store.give_up(gone)
        assert [write.path for write in store.unfinished()] == ["raw.tar"]
        assert [write.path for write in open_store("s3://bucket").unfinished()] == keys[2:]
        assert store.read(f"{DATA}/aa/whole") == b"whole"


def test_an_upload_that_was_begun_today_is_left_to_its_writer(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    begin_upload(f"young/{DATA}/aa/x")
    store = open_store("s3://bucket/young")
    assert "0 unfinished writes" in collect(store.uri, delete=True)[-1]
    (young,) = store.unfinished()
    assert abs(young.begun_s - time.time()) < 600


def test_a_server_that_knows_no_list_of_uploads_is_said_to_and_the_rest_is_done(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Proxy.handle

    async def refuse(self: Proxy, request: Any) -> Any:
        from aiohttp import web

        if "uploads" in request.query:
            body = b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>"
            return web.Response(status=501, body=body, content_type="application/xml")
        return await answer(self, request)

    monkeypatch.setattr(Proxy, "handle", refuse)
    with faulty(s3_environment["AWS_ENDPOINT_URL"]) as proxy:
        for name, value in (s3_environment | {"AWS_ENDPOINT_URL": proxy.address}).items():
            monkeypatch.setenv(name, value)
        store = open_store("s3://bucket/refused")
        store.write(f"{DATA}/aa/orphan", b"left")
        time.sleep(1.1)
        told = list(collect_garbage(store.uri, older_than_hours=0.0, delete=True))
        assert told[0].endswith(f"{DATA}/aa/orphan")
        assert told[1].startswith("unfinished uploads are not known: s3://bucket/refused: could")
        assert "does not offer it" in told[1]
        assert told[2].startswith("1 objects, 4 bytes deleted")
