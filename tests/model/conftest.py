"""Small packed batches and models for the tests of this room."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.sequence.batch import PackedBatch, assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

NUM_PIECES = 20
SPECIAL = SpecialIds.after(NUM_PIECES)
LATENT_SHAPE = (3, 4, 4)  # four patches of side 2

CONFIGS = {
    "linear-mlp": ModelConfig(dim=32, depth=2, num_heads=4, query_block=5),
    "linear-patch": ModelConfig(
        dim=32, depth=2, num_heads=4, num_kv_heads=2, query_block=7, time_embedding="patch"
    ),
    "unet": ModelConfig(
        dim=32,
        depth=2,
        num_heads=2,
        query_block=64,
        adapter="unet",
        unet=UNetConfig(channels=(8, 16), time_dim=16),
    ),
    "normed": ModelConfig(
        dim=32, depth=2, num_heads=4, num_kv_heads=2, query_block=5, qk_norm="rms", norm="post"
    ),
    "qk-normed": ModelConfig(dim=32, depth=2, num_heads=4, query_block=5, qk_norm="rms"),
    "adaln": ModelConfig(dim=32, depth=2, num_heads=4, image_head="adaln"),
    "by-modality": ModelConfig(
        dim=32, depth=2, num_heads=4, query_block=7, qk_norm="rms", weights="by_modality"
    ),
}


def _text(rng: np.random.Generator, length: int) -> TextSpan:
    return TextSpan(rng.integers(0, NUM_PIECES, length).astype(np.int32))


def _image(rng: np.random.Generator, *, drop_caption: bool = False) -> ImageSpan[ImageInput]:
    latent, noise = rng.standard_normal((2, *LATENT_SHAPE), dtype=np.float32)
    given = ImageInput(
        latent=latent,
        noise=noise,
        timestep=int(rng.integers(1000)),
        sees="nothing" if drop_caption else "all",
    )
    return ImageSpan(2, 2, given)


def make_document(kind: str, seed: int) -> Document[ImageInput]:
    """A document by kind: text, captioned, dropped, image_first, interleaved."""
    rng = np.random.default_rng(seed)
    spans = {
        "text": lambda: (_text(rng, 7),),
        "captioned": lambda: (_text(rng, 4), _image(rng)),
        "dropped": lambda: (_text(rng, 4), _image(rng, drop_caption=True)),
        "image_first": lambda: (_image(rng), _text(rng, 3)),
        "interleaved": lambda: (_text(rng, 2), _image(rng), _text(rng, 3), _image(rng)),
    }
    return Document(spans[kind]())


def make_batch(
    sequences: list[list[Document[ImageInput]]],
    *,
    sequence_length: int = 48,
    image_slots: int = 6,
    text_rows: int = 64,
) -> PackedBatch:
    """A packed batch with room to spare."""
    return assemble(
        sequences,
        layout=SequenceLayout(patch_size=2),
        special=SPECIAL,
        sequence_length=sequence_length,
        image_slots=image_slots,
        text_rows=text_rows,
        latent_shape=LATENT_SHAPE,
    )


@pytest.fixture
def document() -> Callable[..., Document[ImageInput]]:
    return make_document


@pytest.fixture
def pack() -> Callable[..., PackedBatch]:
    return make_batch


@pytest.fixture
def special() -> SpecialIds:
    return SPECIAL


@pytest.fixture
def mixed_batch() -> PackedBatch:
    """Every kind of document, two sequences, padding, unused slots and rows."""
    kinds = [["captioned", "text", "dropped"], ["interleaved", "image_first"]]
    return make_batch(
        [
            [make_document(kind, seed=10 * s + i) for i, kind in enumerate(row)]
            for s, row in enumerate(kinds)
        ]
    )


def make_model(config: ModelConfig) -> TransfusionModel:
    """A model with weights large enough that every path matters."""
    model = TransfusionModel(config, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT_SHAPE[0])
    model.init_weights(seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name in ("up.project.weight", "up.conv_out.weight")
            parameter.mul_(30.0 if last else 3.0 if parameter.ndim > 1 else 1.0)
    return model.eval()


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> TransfusionModel:
    return make_model(CONFIGS[request.param])


@pytest.fixture
def linear_model() -> TransfusionModel:
    return make_model(CONFIGS["linear-mlp"])
