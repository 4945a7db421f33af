"""Pictures of prompts: what the sampler draws of each alone, whatever befalls the run, and as files."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from data_pipelines.shards import in_process
from tests.documents import documents_of
from tests.pipeline import Launch, make, make_model
from tests.tiny import QUICK
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.images import ImageRow, read_images
from transfusion.artifacts.pool import ShardPool
from transfusion.artifacts.shards import read_rejects, row_entries
from transfusion.errors import ArtifactError, SpecError
from transfusion.package.load import load_package
from transfusion.runner.export import export_images
from transfusion.sample.params import params_with
from transfusion.sample.pictures import png_bytes
from transfusion.sample.sampler import Sampler

GENERATE = "data_pipelines.generate"
PROMPTS = [
    {"tag": "colors", "include": [{"class": shape, "count": 1, "color": color}], "prompt": f"a {color} {shape}"}
    for color in ("red", "blue")
    for shape in ("circle", "square", "triangle")
]  # fmt: skip


def prompts(root: Path, *parts: list[dict[str, object]], **config: object) -> Artifact:
    """A file a part: shards of the same prompts."""
    folder = root.parent / f"{root.name}-prompts-{len(parts)}"
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        lines = "".join(f"{json.dumps(row)}\n" for row in part)
        (folder / f"{number}.jsonl").write_text(lines)
    config = {"text_column": "prompt", "metadata_columns": "all"} | config
    return make(root, "data_pipelines.sources.text", {"path": str(folder), **config})


def generate(
    root: Path, listing: Artifact, launch: object = in_process, **config: object
) -> Artifact:
    config = QUICK | {"seed": 5, "num_samples": 2, "batch_size": 5} | config
    inputs = {"prompts": listing, "model": make_model(root)}
    return make(root, GENERATE, config, inputs, launch=launch)


def halves(root: Path) -> Artifact:
    return prompts(root, PROMPTS[:4], PROMPTS[4:])


def pixels(row: ImageRow) -> np.ndarray:
    return np.asarray(Picture.open(io.BytesIO(row.image))).astype(int)


def test_each_picture_is_what_the_sampler_draws_of_its_prompt_alone(tmp_path: Path) -> None:
    images = generate(tmp_path / "store", halves(tmp_path / "store"), negative_prompt="a green")
    rows = list(read_images(images))
    assert [(row.prompt, row.sample) for row in rows] == [
        (prompt["prompt"], number) for prompt in PROMPTS for number in (0, 1)
    ]
    assert [row.metadata for row in rows[::2]] == PROMPTS
    assert len({row.seed for row in rows}) == 12
    sampler = Sampler(load_package(images.input("model").folder()))
    for row in rows:
        params = params_with(
            sampler.package.config.sampling, **QUICK, seed=row.seed, modalities=("image",)
        )
        request = sampler.request(row.prompt, params, negative_prompt="a green")
        (alone,) = sampler.sample([request])
        assert abs(alone.images[0].astype(int) - pixels(row)).max() <= 1
    assert images.manifest.content.outcomes.model_dump() == {
        "input": 6, "written": 6, "filtered": {}, "rejected": {},
    }  # fmt: skip
    assert images.metadata == {
        "model": sampler.package.digest, "image_size_px": 16, "num_samples": 2,
    }  # fmt: skip


def test_neither_company_nor_the_number_of_samples_shows_in_a_picture(tmp_path: Path) -> None:
    root = tmp_path / "store"
    listing = halves(root)
    few = {(r.prompt_key, r.sample): r for r in read_images(generate(root, listing))}
    many = list(read_images(generate(root, listing, num_samples=3, batch_size=2)))
    assert len(many) == 18
    for row in many:
        if row.sample < 2:
            other = few.pop((row.prompt_key, row.sample))
            assert row.seed == other.seed
            assert abs(pixels(row) - pixels(other)).max() <= 1
    assert not few


def test_a_crash_between_data_and_record_and_lost_data_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate(tmp_path / "a", halves(tmp_path / "a"))
    path = ShardPool._path
    calls = []

    def die_on_the_second(self: ShardPool, key: str) -> str:
        calls.append(key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return path(self, key)

    monkeypatch.setattr(ShardPool, "_path", die_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "b", halves(tmp_path / "b"))
    monkeypatch.undo()
    launch = Launch()
    again = generate(tmp_path / "b", halves(tmp_path / "b"), launch)
    assert launch.made == [1]
    assert again.manifest.digest == whole.manifest.digest
    again.store.delete(next(iter(row_entries(again).values())).path)
    launch = Launch()
    mended = generate(tmp_path / "b", halves(tmp_path / "b"), launch)
    assert (launch.made, mended.manifest.digest) == ([1], whole.manifest.digest)


def test_new_prompts_are_drawn_and_the_old_ones_are_not_drawn_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    generate(root, prompts(root, PROMPTS[:2]))
    (tmp_path / "store-prompts-1/more.jsonl").write_text(json.dumps(PROMPTS[5]))
    launch = Launch()
    grown = generate(root, prompts(root, PROMPTS[:2]), launch)
    assert launch.made == [1]
    assert [row.prompt for row in read_images(grown)][::2] == [
        PROMPTS[n]["prompt"] for n in (0, 1, 5)
    ]


def test_what_is_no_prompt_is_named(tmp_path: Path) -> None:
    root = tmp_path / "store"
    rows = [PROMPTS[0], {"prompt": " "}, {"prompt": "a red circle " * 30}]
    images = generate(root, prompts(root, rows))
    assert len(list(read_images(images))) == 2
    assert read_rejects(images).select(["key", "reason"]).to_pylist() == [
        {"key": "0.jsonl:2", "reason": "empty"},
        {"key": "0.jsonl:3", "reason": "too_long"},
    ]
    with pytest.raises(SpecError, match="num_inference_steps must be 10 to 250"):
        generate(root, prompts(root, rows), num_inference_steps=3)
    with pytest.raises(SpecError, match=r"config\.negative_prompt: negative_prompt takes"):
        generate(root, prompts(root, rows), negative_prompt="a red circle " * 30)


def read_as_geneval_does(folder: Path) -> list[tuple[dict[str, object], int]]:
    """What `evaluate_images.py` of GenEval comes to see: metadata and the number of pictures of each prompt."""
    found = []
    for subfolder in sorted(folder.iterdir()):
        if not subfolder.is_dir() or not subfolder.name.isdigit():
            continue
        with (subfolder / "metadata.jsonl").open() as file:
            metadata = json.load(file)
        names = [place.name for place in (subfolder / "samples").iterdir()]
        assert all(re.match(r"\d+\.png", name) for name in names)
        found.append((metadata, len(names)))
    return found


def test_an_export_is_what_the_scorer_of_geneval_reads_and_goes_on_after_a_kill(
    tmp_path: Path,
) -> None:
    images = generate(tmp_path / "store", halves(tmp_path / "store"))
    target, out = images.store.url(images.path), tmp_path / "out"
    assert export_images(target, out=out, layout="geneval") == f"{out}  12 pictures"
    assert read_as_geneval_does(out) == [(prompt, 2) for prompt in PROMPTS]
    first = f"{json.dumps(PROMPTS[0])}\n"  # the line of the file of prompts, to the byte
    assert (out / "00000/metadata.jsonl").read_text() == first
    rows = list(read_images(images))
    assert (out / "00001/samples/0000.png").read_bytes() == rows[2].image

    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    (out / "00003").rename(out / ".00003")  # as a kill leaves it
    (out / ".00003/metadata.jsonl").unlink()
    kept = (out / "00001/metadata.jsonl").stat().st_mtime_ns
    export_images(target, out=out, layout="geneval")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert (out / "00001/metadata.jsonl").stat().st_mtime_ns == kept

    other = generate(tmp_path / "store", halves(tmp_path / "store"), seed=6)
    with pytest.raises(SpecError, match="no export of these pictures"):
        export_images(other.store.url(other.path), out=out, layout="geneval")
    model = images.input("model")
    with pytest.raises(ArtifactError, match="not generated images"):
        export_images(model.store.url(model.path), out=tmp_path / "x", layout="geneval")


def test_prompts_of_two_files_with_one_key_are_two_prompts(tmp_path: Path) -> None:
    folder, root = tmp_path / "twins", tmp_path / "store"
    folder.mkdir()
    said = ["a red circle", "a blue square"]
    for number, caption in enumerate(said):
        row = {
            "key": ["0"],
            "caption": [caption],
            "image": [png_bytes(np.zeros((16, 16, 3), np.uint8))],
        }
        pq.write_table(pa.table(row), folder / f"{number}.parquet")
    listing = make(
        root, "data_pipelines.sources.parquet_images",
        {"path": str(folder), "caption_column": "caption", "key_column": "key"},
    )  # fmt: skip
    images = generate(root, listing)
    export_images(images.store.url(images.path), out=tmp_path / "out", layout="geneval")
    found = read_as_geneval_does(tmp_path / "out")
    assert [(metadata["prompt"], count) for metadata, count in found] == [(one, 2) for one in said]
    assert (tmp_path / "out/00001/samples/0000.png").read_bytes() == list(read_images(images))[
        2
    ].image


def test_an_export_whose_mark_was_being_written_goes_on(tmp_path: Path) -> None:
    images = generate(tmp_path / "store", halves(tmp_path / "store"))
    out = tmp_path / "out"
    out.mkdir()
    (out / ".export.json").write_text("{")
    assert "12 pictures" in export_images(images.store.url(images.path), out=out, layout="geneval")
    with pytest.raises(SpecError, match="belong to a job file"):
        export_images(images.store.url(images.path), out=out, layout="geneval", stage="drawings")


def test_pictures_are_a_source_again(tmp_path: Path) -> None:
    images = generate(tmp_path / "store", halves(tmp_path / "store"))
    out = tmp_path / "out"
    export_images(images.store.url(images.path), out=out, layout="parquet")
    documents = documents_of(
        "parquet_images", path=str(out), caption_column="prompt", key_column="key"
    )
    found = {d.key: (d.segments[0].text, d.segments[1].data) for d in documents}
    assert found == {
        f"{row.prompt_key}#{row.sample}": (row.prompt, row.image) for row in read_images(images)
    }


@pytest.mark.ray
def test_workers_of_ray_come_to_the_same_artifact(ray_cluster: None, tmp_path: Path) -> None:
    from data_pipelines.shards import on_ray

    here = generate(tmp_path / "a", halves(tmp_path / "a"))
    there = generate(tmp_path / "b", halves(tmp_path / "b"), on_ray)
    assert there.manifest.digest == here.manifest.digest
