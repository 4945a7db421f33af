"""One hostile image never costs more than itself: codecs that crash or never end, among images that are fine."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_pipelines.decoders as of_decoders
import data_pipelines.encode_images.decoding as decoding
from data_pipelines.decode import Reject
from data_pipelines.decoders import DecoderLostError, Decoders, running_decoders
from data_pipelines.documents import Document
from data_pipelines.documents import Image as ImageSegment
from data_pipelines.images import LoadedImage, load_images
from data_pipelines.limits import DecodeLimits
from data_pipelines.preparation import Preparation
from data_pipelines.shards import in_process
from tests.hostile_decoders import HostilePreparation, marked
from tests.pipeline import make, make_autoencoder
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import read_rejects
from transfusion.errors import ArtifactError

LIMITS = DecodeLimits(decode_cpu_s=0.3)
HOSTILE = HostilePreparation(LIMITS, ((32, 32),))


def png(level: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 36), (level, 0, 255 - level)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def decoders():
    running = Decoders(2)
    yield running
    running.close()


def document(number: int, fault: str | None) -> Document:
    data = png(number) if fault is None else marked(png(number), fault)
    return Document(f"{number:03d}", (ImageSegment(data, f"{number}.png"),))


def test_the_child_prepares_what_this_process_would(decoders: Decoders) -> None:
    plain = Preparation(DecodeLimits(), ((32, 32), (16, 48)))
    rng = np.random.default_rng(0)
    images = []
    for shape in ((64, 64), (20, 60), (200, 80)):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(data, "JPEG")
        images.append(data.getvalue())
    *prepared, reject = decoders.prepare(plain, [*images, b"nothing"])
    for there, data in zip(prepared, images, strict=True):
        here = plain(data)
        assert np.array_equal(there.pixels, here.pixels)
        assert there.facts == here.facts
    assert reject.reason == "not_an_image"


@pytest.mark.parametrize(
    ("fault", "reason", "said"),
    [
        ("segfault", "decoder_crashed", "SIGSEGV"),
        ("abort", "decoder_crashed", "SIGABRT"),
        ("exit", "decoder_crashed", "an exit"),
        ("spin", "decoder_timeout", "0.3 CPU seconds"),
    ],
)
def test_a_codec_that_dies_or_never_ends_is_a_reject(
    decoders: Decoders, fault: str, reason: str, said: str
) -> None:
    before, reject, after = decoders.prepare(HOSTILE, [png(1), marked(png(2), fault), png(3)])
    assert isinstance(reject, Reject)
    assert reject.reason == reason
    assert said in reject.detail
    assert [image.pixels[0, 0, 0] for image in (before, after)] == [1, 3]


def test_a_crash_that_does_not_come_back_costs_nothing(decoders: Decoders, tmp_path: Path) -> None:
    once = marked(png(1), f"once {tmp_path / 'seen'}")
    (image,) = decoders.prepare(HOSTILE, [once])
    assert image.pixels.shape == (32, 32, 3)


def test_what_is_no_fault_of_the_image_is_no_reject(decoders: Decoders) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        decoders.prepare(HOSTILE, [marked(png(1), "bug")])
    assert decoders.usable
    with pytest.raises(RuntimeError, match="killed from outside"):
        decoders.prepare(HOSTILE, [marked(png(1), "killed")])
    assert not decoders.usable


def test_decoders_that_lost_a_child_are_retired_and_still_serve_whoever_is_at_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(of_decoders, "_running", {})
    retired: list[Decoders] = []
    monkeypatch.setattr(of_decoders, "_retired", retired)
    first = running_decoders(2)
    assert running_decoders(2) is first
    with ThreadPoolExecutor(1) as threads:
        slow = [marked(png(number), "slow") for number in range(8)]
        waiting = threads.submit(first.prepare, HOSTILE, slow)
        with pytest.raises(DecoderLostError, match="killed from outside"):
            first.prepare(HOSTILE, [marked(png(1), "killed")])
        second = running_decoders(2)
        assert second is not first
        assert retired == [first]
        assert [image.pixels[0, 0, 0] for image in waiting.result()] == list(range(8))
    assert [image.pixels[0, 0, 0] for image in second.prepare(HOSTILE, [png(5)])] == [5]
    assert running_decoders(2) is second
    of_decoders._close_all()
    assert all(running._process.poll() is not None for running in (first, second))


def test_every_image_around_the_hostile_ones_comes_out_in_its_place(decoders: Decoders) -> None:
    faults = {3: "segfault", 9: "spin", 10: "abort", 20: "slow", 21: "exit"}
    documents = [document(number, faults.get(number)) for number in range(40)]
    began = time.monotonic()
    found = list(load_images(documents, preparation=HOSTILE, decoders=decoders))
    assert [item.key for item in found] == [d.key for d in documents]
    rejects = {int(item.key): item.reason for item in found if not isinstance(item, LoadedImage)}
    assert rejects == {
        3: "decoder_crashed", 9: "decoder_timeout", 10: "decoder_crashed", 21: "decoder_crashed",
    }  # fmt: skip
    for item in found:
        if isinstance(item, LoadedImage):
            assert tuple(item.pixels[5, 5]) == (int(item.key), 0, 255 - int(item.key))
    assert time.monotonic() - began < 20


def test_children_end_with_their_parent_however_it_ends() -> None:
    script = (
        "import sys, os, signal\n"
        "from data_pipelines.decoders import Decoders\n"
        "running = Decoders(2)\n"
        "from data_pipelines.preparation import Preparation\n"
        "from data_pipelines.limits import DecodeLimits\n"
        "running.prepare(Preparation(DecodeLimits(), ((8, 8),)), [b''])\n"
        "print(running._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=_environment()
    )
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    for _ in range(200):
        if not _alive(child):
            return
        time.sleep(0.05)
    raise AssertionError("the decoders outlive their parent")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}


def _alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def hostile_folder(root: Path, fault: str) -> Path:
    root.mkdir()
    lines = []
    for number in range(12):
        data = png(10 * number) if number != 5 else marked(png(50), fault)
        (root / f"{number:02d}.png").write_bytes(data)
        lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": "a picture"}))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def encode(root: Path, place: Path) -> Artifact:
    return make(
        root,
        "data_pipelines.encode_images",
        {"image_size_px": 32, "micro_batch": 4, "limits": {"decode_cpu_s": 0.3}},
        {
            "images": make(root, "data_pipelines.sources.image_folder", {"path": str(place)}),
            "autoencoder": make_autoencoder(root),
        },
        launch=in_process,
    )


@pytest.mark.parametrize(
    ("fault", "reason"), [("segfault", "decoder_crashed"), ("spin", "decoder_timeout")]
)
def test_a_shard_with_a_hostile_image_loses_that_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    monkeypatch.setattr(decoding, "Preparation", HostilePreparation)
    latents = encode(tmp_path / "store", hostile_folder(tmp_path / "images", fault))
    outcomes = latents.manifest.content.outcomes
    assert outcomes is not None
    assert (outcomes.input, outcomes.written, outcomes.rejected) == (12, 11, {reason: 1})
    (reject,) = read_rejects(latents).to_pylist()
    assert "05.png" in reject["key"] + reject["detail"]


def test_a_fault_of_the_program_fails_the_shard_and_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "Preparation", HostilePreparation)
    with pytest.raises(ArtifactError, match=r"(?s)LookupError: no such thing.*05\.png"):
        encode(tmp_path / "store", hostile_folder(tmp_path / "images", "bug"))
