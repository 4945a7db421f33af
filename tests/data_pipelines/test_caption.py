"""Captions by a model: what the sampler says of each image alone, whatever befalls the run, and in a mixture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from data_pipelines.caption.config import CaptionConfig
from data_pipelines.crop import center_crop_resize
from data_pipelines.decode import decode_image
from data_pipelines.documents import Image
from data_pipelines.limits import DecodeLimits
from data_pipelines.shards import Attempt, in_process
from data_pipelines.sources.source import open_listing
from tests.pipeline import Launch, make, make_autoencoder, make_model, rows_of, shapes, tokenizer_of
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pool import ShardPool
from transfusion.artifacts.shards import index_entries, read_rejects, row_entries
from transfusion.artifacts.tables import load_table
from transfusion.errors import ArtifactError, SpecError
from transfusion.ingest.reader import MixtureReader
from transfusion.package.load import load_package
from transfusion.sample.params import SamplingParams
from transfusion.sample.sampler import Sampler
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer

CAPTION = "data_pipelines.caption"
TOKENIZE = "data_pipelines.tokenize_text"


def caption(
    root: Path, listing: Artifact, launch: object = in_process, **config: object
) -> Artifact:
    config = {"seed": 5, "max_tokens": 6, "batch_size": 3, "temperature": 1.0} | config
    inputs = {"images": listing, "model": make_model(root)}
    return make(root, CAPTION, config, inputs, launch=launch)


def records_of(captions: Artifact) -> dict[str, dict[str, object]]:
    tables = [load_table(captions.store, entry) for entry in row_entries(captions).values()]
    return {row["key"]: row for table in tables for row in table.to_pylist()}


def test_each_caption_is_what_the_sampler_says_of_the_image_alone(tmp_path: Path) -> None:
    listing = shapes(tmp_path / "store")
    captions = caption(tmp_path / "store", listing, prompt="a red")
    records = records_of(captions)
    assert len(records) == 24
    sampler = Sampler(load_package(captions.input("model").folder()))
    opened = open_listing(listing)
    seeds = set()
    for document in (d for shard in opened.shards for d in opened.read(shard)):
        (image,) = (s for s in document.segments if isinstance(s, Image))
        pixels = center_crop_resize(decode_image(image.data, DecodeLimits()), (16, 16))
        record = records[document.key]
        seeds.add(record["seed"])
        params = SamplingParams(
            temperature=1.0, max_tokens=6, modalities=("text",), seed=record["seed"]
        )
        (alone,) = sampler.sample([sampler.request([pixels, "a red"], params)])
        assert alone.text.strip() == record["caption"]
        assert alone.finish_reason == record["finish_reason"]
    assert len(seeds) == 24
    assert captions.metadata == {"model": sampler.package.digest}


def test_neither_shards_nor_company_show_in_a_caption(tmp_path: Path) -> None:
    root = tmp_path / "store"
    small = make(
        root, "data_pipelines.sources.shapes", {"num_images": 24, "seed": 3, "images_per_shard": 5}
    )
    others = records_of(caption(root, small, batch_size=7))
    assert records_of(caption(root, shapes(root))) == others
    assert records_of(caption(root, shapes(root), seed=6)) != others


def test_a_crash_between_data_and_record_and_lost_data_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = caption(tmp_path / "a", shapes(tmp_path / "a"))
    path = ShardPool._path
    calls = []

    def die_on_the_second(self: ShardPool, key: str) -> str:
        calls.append(key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return path(self, key)

    monkeypatch.setattr(ShardPool, "_path", die_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        caption(tmp_path / "b", shapes(tmp_path / "b"))
    monkeypatch.undo()
    launch = Launch()
    again = caption(tmp_path / "b", shapes(tmp_path / "b"), launch)
    assert launch.made[0] < 3
    assert again.manifest.digest == whole.manifest.digest
    again.store.delete(next(iter(row_entries(again).values())).path)
    launch = Launch()
    assert (
        caption(tmp_path / "b", shapes(tmp_path / "b"), launch).manifest.digest
        == whole.manifest.digest
    )
    assert launch.made == [1]


def test_captions_take_the_place_of_texts_in_a_mixture_and_no_image_is_encoded_again(
    tmp_path: Path,
) -> None:
    root = tmp_path / "store"
    listing = shapes(root)
    captions, tokenizer = caption(root, listing), tokenizer_of(root, listing)
    inputs = {"documents": listing, "tokenizer": tokenizer}
    old = make(root, TOKENIZE, {}, inputs, launch=in_process)
    new = make(root, TOKENIZE, {}, inputs | {"captions": captions}, launch=in_process)
    decode = Tokenizer(tokenizer.read(MODEL)).decode
    said = {row.key: decode(np.concatenate(row.segments).tolist()) for row in rows_of(new)}
    assert said == {key: row["caption"] for key, row in records_of(captions).items()}
    assert {row.layout for row in rows_of(new)} == {"ti"}
    index = [load_table(new.store, entry) for entry in index_entries(new).values()]
    finished = {
        row["key"]: row["meta.finish_reason"] for table in index for row in table.to_pylist()
    }
    assert finished == {key: row["finish_reason"] for key, row in records_of(captions).items()}

    latents = make(
        root,
        "data_pipelines.encode_images",
        {"image_size_px": 32, "micro_batch": 8},
        {"images": listing, "autoencoder": make_autoencoder(root)},
        launch=in_process,
    )

    def mixture(**sources: str) -> Artifact:
        described = {name: {"tokens": role, "latents": "latents"} for name, role in sources.items()}
        config = {
            "sources": described,
            "sequence_length": 128,
            "sequences_per_micro_batch": 2,
            "lanes": 1,
            "num_steps": 6,
            "seed": 0,
            "held_out_fraction": 0.25,
        }
        roles = {"old": old, "new": new}
        used = {role: roles[role] for role in sources.values()}
        return make(root, "data_pipelines.mix", config, used | {"latents": latents})

    reader = MixtureReader(mixture(pairs="new"), seed=0)
    batch, keys = reader.micro_batch(0, 0), reader.document_ids(0, 0)
    shown = batch.token_ids.flatten().tolist()
    ids = {row.key: np.concatenate(row.segments).tolist() for row in rows_of(new)}
    before = {row.key: np.concatenate(row.segments).tolist() for row in rows_of(old)}
    assert len(keys) > 1
    for key in keys:
        name = key.removeprefix("pairs/")
        assert contains(shown, ids[name])
        assert not contains(shown, before[name])
    assert int(batch.present.sum()) == len(keys)

    # Beside the old captions: an image is held out from both, or from none.
    both = mixture(own="old", recaptioned="new")
    held_out: tuple[set[str], set[str]] = (set(), set())
    tables = [
        load_table(tokens.store, entry)["key"].to_pylist()
        for tokens in (old, new)
        for entry in row_entries(tokens).values()
    ]
    for one in load_table(both.store, both.entry("held_out")).to_pylist():
        held_out[one["source"]].add(tables[one["shard"]][one["row"]])
    assert held_out[0] & ids.keys() == held_out[1]
    assert held_out[1]


def contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids)))


def test_captions_stand_among_codes_too(tmp_path: Path) -> None:
    root = tmp_path / "store"
    listing = shapes(root)
    captions, tokenizer = caption(root, listing), tokenizer_of(root, listing)
    tokens = make(
        root,
        "data_pipelines.tokenize_images",
        {"image_size_px": 32, "seed": 1, "caption_drop": 0.0},
        {
            "documents": listing,
            "tokenizer": tokenizer,
            "autoencoder": make_autoencoder(root, codebook_size=32),
            "captions": captions,
        },
        launch=in_process,
    )
    said = {key: row["caption"] for key, row in records_of(captions).items()}
    decode, pieces = Tokenizer(tokenizer.read(MODEL)).decode, tokens.metadata["num_pieces"]
    found = {
        row.key: decode(
            [token for token in np.concatenate(row.segments).tolist() if token < pieces]
        )
        for row in rows_of(tokens)
    }
    assert found == said


def test_without_captions_the_keys_of_shards_are_those_from_before_there_were_any(
    tmp_path: Path,
) -> None:
    from data_pipelines.shards import plan_tasks
    from transfusion.artifacts.pool import shard_key

    listing = shapes(tmp_path / "store")
    (first, *_) = plan_tasks(listing, version=2, config={}, upstream={"tokenizer": "t"})
    assert first.key == shard_key(
        version=2,
        config={},
        shard=first.descriptor.identity,
        upstream={
            "source": {"uses": listing.manifest.uses, "version": listing.manifest.version},
            "tokenizer": "t",
        },
    )


def test_what_cannot_be_captioned_is_named_and_takes_no_part(tmp_path: Path) -> None:
    root, folder = tmp_path / "store", tmp_path / "raw"
    folder.mkdir()
    rows = []
    for name in ("a.png", "b.png"):
        Picture.new("RGB", (40, 40), "red").save(folder / name)
        rows.append({"file_name": name, "text": f"picture {name}"})
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    listing = make(root, "data_pipelines.sources.image_folder", {"path": str(folder)})
    captions = caption(root, listing)
    assert list(records_of(captions)) == ["a.png"]
    assert read_rejects(captions)["key"].to_pylist() == ["b.png"]
    docs = make(root, "data_pipelines.sources.python_docs", {})
    tokenizer = make(root, "data_pipelines.tokenizer", {"vocab_size": 400}, {"docs": docs})
    inputs = {"documents": listing, "tokenizer": tokenizer, "captions": captions}
    tokens = make(root, TOKENIZE, {}, inputs, launch=in_process)
    assert [row.key for row in rows_of(tokens)] == ["a.png"]
    assert read_rejects(tokens).select(["key", "reason"]).to_pylist() == [
        {"key": "b.png", "reason": "no_caption"}
    ]
    # Text alone has no image to caption.
    rejected = read_rejects(caption(root, docs))
    assert set(rejected["reason"].to_pylist()) == {"not_one_image"}


def test_a_shard_that_could_not_be_captioned_is_left_out_of_the_tokens(tmp_path: Path) -> None:
    root = tmp_path / "store"
    listing = shapes(root)

    def but_the_first(factory, tasks, resources):
        yield Attempt(tasks[0], None, "broken", final=True)
        yield from in_process(factory, tasks[1:], resources)

    captions = caption(root, listing, but_the_first, max_quarantined_shards=1)
    inputs = {
        "documents": listing,
        "tokenizer": tokenizer_of(root, listing),
        "captions": captions,
    }
    tokens = make(root, TOKENIZE, {}, inputs, launch=in_process)
    assert len(row_entries(tokens)) == 2
    assert not captions.metadata["quarantined"].keys() & row_entries(tokens).keys()


def test_captions_of_another_listing_and_a_prompt_too_long_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "store"
    listing = shapes(root)
    other = make(root, "data_pipelines.sources.shapes", {"num_images": 8, "seed": 9})
    inputs = {
        "documents": listing,
        "tokenizer": tokenizer_of(root, listing),
        "captions": caption(root, other),
    }
    with pytest.raises(ArtifactError, match="lacks 3 of the listing's 3 shards"):
        make(root, TOKENIZE, {}, inputs, launch=in_process)
    with pytest.raises(ValueError, match="none of them empty"):
        CaptionConfig(seed=0, stop=("",))
    with pytest.raises(SpecError, match=r"config.prompt: the prompt takes \d+ positions"):
        caption(root, listing, prompt="a red circle " * 30)
