"""The nearest training image: found among exactly what was trained on, the same however it is streamed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mixes import Doc, mix, pair, prose, sha_of_image
from tests.tiny import LATENT, tiny_package
from transfusion.artifacts.artifact import Artifact
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.evaluate.nearest import nearest_images
from transfusion.evaluate.training_images import TrainingImages, trained_steps, training_images
from transfusion.ingest.reader import MixtureReader
from transfusion.package.format import LineageEntry
from transfusion.package.load import load_package

Place = tuple[str, str, int]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    return load_package(tiny_package(tmp_path_factory.mktemp("package") / "model")).autoencoder


def draw(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, *LATENT, generator=torch.Generator().manual_seed(seed))


def in_groups(means: torch.Tensor, sizes: Sequence[int]) -> Iterator[TrainingImages]:
    keys = iter(range(len(means)))
    for part in means.split(list(sizes)):
        own = [next(keys) for _ in part]
        yield TrainingImages(
            source="pairs",
            keys=[f"k{i}" for i in own],
            image_indices=[i % 3 for i in own],
            means=part,
        )


def cuts(total: int) -> st.SearchStrategy[list[int]]:
    places = st.lists(st.integers(1, total - 1), max_size=12, unique=True).map(sorted)
    return places.map(lambda found: np.diff([0, *found, total]).tolist())


@settings(max_examples=30, deadline=None)
@given(cuts(70), st.integers(0, 100))
def test_it_is_that_of_brute_force_however_it_is_streamed(
    autoencoder: Autoencoder, sizes: list[int], seed: int
) -> None:
    means, asked = draw(70, seed), draw(9, seed + 1000)
    found, looked_at = nearest_images(asked, in_groups(means, sizes), autoencoder)
    statistics = autoencoder.statistics
    shift, scale = (
        np.array(values)[:, None, None] for values in (statistics.shift, statistics.scale)
    )
    there = (means.double().numpy() - shift) / scale
    apart = asked.double().numpy()[:, None] - there[None]
    distances = np.sqrt((apart**2).mean(axis=(2, 3, 4)))
    assert looked_at == 70
    assert [one.key for one in found] == [f"k{i}" for i in distances.argmin(axis=1)]
    assert [one.distance for one in found] == pytest.approx(distances.min(axis=1), rel=1e-5)
    for one in found:
        number = int(one.key[1:])
        assert one.image_index == number % 3
        assert torch.equal(one.latent, means[number])


def test_a_copy_is_at_no_distance_and_the_first_of_two_is_named(autoencoder: Autoencoder) -> None:
    means = 40 + draw(600, 0)
    means[500] = means[17]
    asked = autoencoder.normalize(means[[17, 599]])
    found, _ = nearest_images(asked, in_groups(means, [100] * 6), autoencoder)
    assert [one.key for one in found] == ["k17", "k599"]
    assert [one.distance for one in found] == [0.0, 0.0]


def test_without_training_images_there_is_none(autoencoder: Autoencoder) -> None:
    assert nearest_images(draw(3, 0), iter(()), autoencoder) == ([], 0)


DOCS = {
    "pairs": [pair(f"p{i:02}", tokens=4, metadata={"score": i}) for i in range(40)],
    "prose": [prose(f"t{i}") for i in range(5)],
    "pages": [
        Doc(key=f"w{i:02}", segments=[3, f"a{i}", 4, f"b{i}", 2, f"c{i}"][: 2 + 2 * (i % 3)])
        for i in range(30)
    ],
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return mix(
        tmp_path_factory.mktemp("mix") / "store",
        DOCS,
        sources={"pairs": {"filters": [{"column": "score", "at_least": 5}]}},
        held_out_fraction=0.2,
        num_steps=8,
    )


def images_of(mixture: Artifact, *, steps: int, max_images: int = 10**9) -> list[Place]:
    groups = training_images(mixture, steps=steps, max_images=max_images)
    return [
        (group.source, key, index)
        for group in groups
        for key, index in zip(group.keys, group.image_indices, strict=True)
    ]


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_they_are_the_images_of_the_documents_that_the_steps_hold(
    mixture: Artifact, steps: int
) -> None:
    reader = MixtureReader(mixture, seed=0)
    trained = {
        tuple(name.split("/"))
        for step in range(steps)
        for lane in range(reader.lanes)
        for name in reader.document_ids(step, lane)
    }
    expected = sorted(
        (source, doc.key, index)
        for source, docs in DOCS.items()
        for doc in docs
        if (source, doc.key) in trained
        for index in range(sum(isinstance(segment, str) for segment in doc.segments))
    )
    found = images_of(mixture, steps=steps)
    assert sorted(found) == expected
    assert len(found) > 3 * steps
    # Neither what is held out nor what is filtered away.
    assert len({key for _, key, _ in found}) < 70 - 15
    assert not {("pairs", f"p{i:02}", 0) for i in range(5)} & set(found)


def test_keys_and_latents_belong_together(mixture: Artifact) -> None:
    for group in training_images(mixture, steps=8, max_images=10**9):
        for key, index, mean in zip(group.keys, group.image_indices, group.means, strict=True):
            name = f"image of {key}" if key[0] == "p" else f"{'abc'[index]}{int(key[1:])}"
            assert torch.all(mean == sha_of_image(name)[0] / 256)


@pytest.mark.parametrize("most", [1, 7, 20])
def test_of_more_than_the_most_they_are_spread_evenly(mixture: Artifact, most: int) -> None:
    every = images_of(mixture, steps=8)
    some = images_of(mixture, steps=8, max_images=most)
    assert some == [every[i * len(every) // most] for i in range(most)]


def test_a_mixture_without_images_has_none(tmp_path: Path) -> None:
    texts = mix(tmp_path / "store", {"prose": [prose(f"t{i}") for i in range(9)]})
    assert images_of(texts, steps=10) == []


def test_steps_are_those_of_the_run_on_this_mixture(mixture: Artifact) -> None:
    def trained(fingerprint: str, **config: object) -> LineageEntry:
        return LineageEntry(
            stage="train",
            uses="transfusion.train",
            fingerprint="0" * 64,
            digest="1" * 64,
            inputs={"mixture": fingerprint},
            config=config,
        )

    own, other = mixture.manifest.fingerprint, "9" * 64
    assert trained_steps([trained(other, steps=2), trained(own, steps=5)], mixture) == 5
    assert trained_steps([trained(own, steps=50)], mixture) == 8
    assert trained_steps([trained(own, steps=5, repeat_first_step=True)], mixture) == 1
    assert trained_steps([trained(other, steps=2)], mixture) == 8
