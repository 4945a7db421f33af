"""What takes part in a plan, who is told, and what a change re-makes."""

import json
from pathlib import Path

import pytest

from data_pipelines.encode_images import STAGE as ENCODE_STAGE
from data_pipelines.mix.config import MixConfig, MixSource, check
from tests.pipeline import commit, make, make_mixture
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.canonical import fingerprint
from transfusion.artifacts.mixture import References, read_mixture
from transfusion.artifacts.shards import index_entries, read_rejects
from transfusion.artifacts.tables import load_table
from transfusion.errors import ArtifactError
from transfusion.ingest.reader import MixtureReader
from transfusion.sequence.held_out import is_held_out
from transfusion.stage import Made

MIX = "data_pipelines.mix"
ENCODE = "data_pipelines.encode_images"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_mixture(tmp_path_factory.mktemp("mix") / "store")


def remake(mixture: Artifact, **changed: object) -> Artifact:
    inputs = {role: mixture.input(role) for role in mixture.manifest.inputs}
    config = {**mixture.manifest.config, **changed}
    return make(Path(mixture.store.uri), MIX, config, inputs)


def keys_of(mixture: Artifact) -> set[str]:
    reader = MixtureReader(mixture, seed=0)
    return {
        key
        for step in range(reader.steps)
        for lane in range(reader.lanes)
        for key in reader.document_ids(step, lane)
    }


def held_out_keys(mixture: Artifact, fraction: float) -> set[str]:
    """By the rule, from the tables of the inputs."""
    found = set()
    images = mixture.input("latents")
    first_image = {}
    for entry in index_entries(images).values():
        for row in load_table(images.store, entry).to_pylist():
            if row["image_index"] == 0:
                first_image[row["key"]] = row["sha256"]
    for name, role in (("pairs", "captions"), ("prose", "prose")):
        tokens = mixture.input(role)
        for entry in index_entries(tokens).values():
            for row in load_table(tokens.store, entry).to_pylist():
                content = first_image.get(row["key"], row["content"])
                if is_held_out(content, fraction):
                    found.add(f"{name}/{row['key']}")
    return found


def test_held_out_documents_are_never_trained_on_and_the_only_ones_validated(
    mixture: Artifact,
) -> None:
    long = remake(mixture, num_steps=40)
    held_out = held_out_keys(mixture, 0.1)
    assert len(held_out) == mixture.manifest.content.outcomes.filtered["held_out"] > 5
    trained = keys_of(long)
    assert not trained & held_out
    assert (
        len({key for key in trained if key.startswith("pairs/")})
        + len({key for key in held_out if key.startswith("pairs/")})
        == 60
    )
    reader = MixtureReader(mixture, seed=0)
    validated = set()
    for index in range(reader.num_validation):
        for sequence in reader.plan.validation(index):
            for piece in sequence:
                source, shard = reader._locate(piece.shard)
                group, row = reader._sources[source].tokens(shard, piece.row)
                validated.add(f"{list(reader.mixture.sources)[source]}/{group.keys[row]}")
    assert validated
    assert validated <= held_out


def test_a_takedown_list_takes_away(mixture: Artifact, tmp_path: Path) -> None:
    gone = sorted(key for key in keys_of(mixture) if key.startswith("pairs/"))[:5]
    takedown = tmp_path / "takedown.txt"
    # As editors on some systems write it.
    lines = "\r\n".join(key.removeprefix("pairs/") for key in gone) + "\r\n"
    takedown.write_bytes(lines.encode("utf-8-sig"))
    without = remake(mixture, takedown=str(takedown), num_steps=30)
    assert without.manifest.content.outcomes.filtered["takedown"] == 5
    assert not keys_of(without) & set(gone)


def test_documents_with_images_that_fit_no_sequence_are_named(mixture: Artifact) -> None:
    tokens = mixture.input("captions")
    lengths = {}
    for entry in index_entries(tokens).values():
        for row in load_table(tokens.store, entry).to_pylist():
            lengths[row["key"]] = sum(row["lengths"]) + 16 + 4
    limit = sorted(lengths.values())[len(lengths) // 2]
    short = remake(mixture, sequence_length=limit)
    too_long = {f"pairs/{key}" for key, length in lengths.items() if length > limit}
    assert too_long
    rejects = mixture_rejects(short)
    assert {row["key"] for row in rejects} == too_long
    assert {row["reason"] for row in rejects} == {"too_long"}
    assert short.manifest.content.outcomes.rejected == {"too_long": len(too_long)}


def mixture_rejects(mixture: Artifact) -> list[dict[str, str]]:
    return load_table(mixture.store, mixture.entry("rejects")).to_pylist()


def test_statistics_are_those_of_the_batches(mixture: Artifact) -> None:
    reader = MixtureReader(mixture, seed=0)
    plan = read_mixture(mixture)
    batches = [reader.micro_batch(s, lane) for s in range(plan.steps) for lane in range(plan.lanes)]
    counted = plan.statistics
    used = sum(int(batch.image_weight.sum()) for batch in batches)
    assert counted["pairs"]["images"] == used
    assert counted["pairs"]["patch_tokens"] == 16 * used
    pad = reader.special.pad
    not_text = {reader.special.bos, reader.special.eos, reader.special.boi, reader.special.eoi, pad}
    text = sum(
        int(sum((batch.token_ids != special) for special in not_text).eq(len(not_text)).sum())
        for batch in batches
    )
    assert counted["pairs"]["caption_tokens"] + counted["prose"]["prose_tokens"] == text
    positions = sum(batch.token_ids.numel() for batch in batches)
    padding = 1 - sum(source["positions"] for source in counted.values()) / positions
    assert mixture.manifest.content.metrics["padding"] == pytest.approx(padding, abs=1e-5)


def test_a_caption_stands_first_as_often_as_asked(mixture: Artifact) -> None:
    long = remake(mixture, num_steps=60)
    reader = MixtureReader(long, seed=0)
    pairs = [
        piece.image_first
        for step in range(60)
        for lane in range(2)
        for sequence in reader.plan.sequences(step, lane)
        for piece in sequence
        if piece.shard < 3
    ]
    assert len(pairs) > 1000
    assert 0.15 < sum(pairs) / len(pairs) < 0.25


def test_a_longer_run_keeps_the_files_of_the_shorter(mixture: Artifact) -> None:
    longer = remake(mixture, num_steps=9)
    a, b = MixtureReader(mixture, seed=0), MixtureReader(longer, seed=0)
    assert a.mixture.image_slots == b.mixture.image_slots
    assert a.mixture.text_rows == b.mixture.text_rows
    for step in range(a.steps):
        for lane in range(a.lanes):
            assert a.plan.sequences(step, lane) == b.plan.sequences(step, lane)


def test_the_same_plan_twice_is_the_same(mixture: Artifact) -> None:
    assert remake(mixture).manifest.digest == mixture.manifest.digest
    assert remake(mixture, seed=1).manifest.digest != mixture.manifest.digest


def test_inputs_that_do_not_belong_together_are_told_apart(mixture: Artifact) -> None:
    with pytest.raises(ArtifactError, match="shards of the tokens have no latents"):
        remake(mixture, sources={"pairs": {"latents": "latents", "tokens": "prose"}})
    with pytest.raises(ArtifactError, match="holds tokens, not latents"):
        remake(mixture, sources={"pairs": {"latents": "captions", "tokens": "captions"}})
    with pytest.raises(ArtifactError, match="multiple of patch_size 3"):
        remake(mixture, layout={"patch_size": 3})


def altered(latents: Artifact, *, without: str = "", **metadata: object) -> Artifact:
    """The same latents but for a shard and what is said of them."""
    content = latents.manifest.content
    kept = [file for file in content.files if file.name.partition("/")[0] != without]
    made = Made(files=kept, metadata={**content.metadata, **metadata})
    inputs = {"autoencoder": latents.input("autoencoder")}
    identity = fingerprint({"without": without, **metadata})
    return commit(latents.store, ENCODE, ENCODE_STAGE, identity, {}, inputs, made)


def with_latents(mixture: Artifact, latents: Artifact) -> Artifact:
    inputs = {role: mixture.input(role) for role in mixture.manifest.inputs}
    config = {**mixture.manifest.config, "num_steps": 30}
    return make(Path(mixture.store.uri), MIX, config, {**inputs, "latents": latents})


def test_a_mix_goes_without_the_shards_that_its_latents_set_aside(mixture: Artifact) -> None:
    latents, tokens = mixture.input("latents"), mixture.input("captions")
    gone, *others = index_entries(tokens)
    keys = {
        shard_id: set(load_table(tokens.store, entry)["key"].to_pylist())
        for shard_id, entry in index_entries(tokens).items()
    }
    plan = with_latents(mixture, altered(latents, without=gone, quarantined={gone: "OSError"}))
    found = {key.removeprefix("pairs/") for key in keys_of(plan) if key.startswith("pairs/")}
    assert not found & keys[gone]
    assert all(found & keys[shard_id] for shard_id in others)
    with pytest.raises(ArtifactError, match="1 shards of the tokens have no latents"):
        with_latents(mixture, altered(latents, without=gone))


def test_latents_of_two_autoencoders_of_one_shape_are_not_mixed(mixture: Artifact) -> None:
    inputs = {role: mixture.input(role) for role in mixture.manifest.inputs}
    inputs["others"] = altered(inputs["latents"], autoencoder="another")
    sources = {
        "pairs": {"latents": "latents", "tokens": "captions"},
        "again": {"latents": "others", "tokens": "captions"},
        "prose": {"tokens": "prose"},
    }
    with pytest.raises(ArtifactError, match="again, pairs have different autoencoders"):
        make(Path(mixture.store.uri), MIX, {**mixture.manifest.config, "sources": sources}, inputs)


def test_a_role_that_is_no_input_is_a_fault_of_the_job() -> None:
    config = MixConfig.model_validate_json(
        json.dumps(
            {
                "sources": {"a": {"tokens": "prose", "latents": "latent"}},
                "sequence_length": 64,
                "sequences_per_micro_batch": 1,
                "lanes": 1,
                "num_steps": 1,
                "seed": 0,
            }
        )
    )
    faults = check(config, {"prose": "x", "latents": "y"})
    assert faults == [
        ".sources.a.latents: no input is named 'latent'; did you mean 'latents'?",
        ".sources: the input 'latents' is used by no source; take it away or name it",
    ]


def test_a_reference_survives_its_sixteen_bytes() -> None:
    import numpy as np

    given = References(
        shard=np.array([0, 2**24 - 1]),
        row=np.array([0, 2**40 - 1]),
        start=np.array([0, 2**28 - 1]),
        length=np.array([0, 2**20 - 1]),
        image_first=np.array([False, True]),
        epoch=np.array([0, 2**15 - 1]),
    )
    words = given.to_words()
    assert words.nbytes == 32
    back = References.from_words(words)
    for name in ("shard", "row", "start", "length", "image_first", "epoch"):
        assert (getattr(back, name) == getattr(given, name)).all()


def test_a_mixture_with_no_rejects_says_so(mixture: Artifact) -> None:
    assert mixture_rejects(mixture) == []
    assert read_rejects(mixture.input("latents")).num_rows == 0


def test_the_order_in_which_a_job_lists_its_sources_does_not_matter() -> None:
    """Shards are numbered source by source, and a manifest keeps its keys sorted."""
    values = {
        "sequence_length": 64,
        "sequences_per_micro_batch": 1,
        "lanes": 1,
        "num_steps": 1,
        "seed": 0,
    }
    pairs, glosses = MixSource(tokens="captions", latents="latents"), MixSource(tokens="tokens")
    one = MixConfig(sources={"pairs": pairs, "glosses": glosses}, **values)
    other = MixConfig(sources={"glosses": glosses, "pairs": pairs}, **values)
    assert list(one.sources) == list(other.sources) == ["glosses", "pairs"]
