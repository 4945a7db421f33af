"""A mixture of codes is trained on by the trainer that there is: words and codes in one vocabulary."""

import math

import pytest
import torch

from tests.pipeline import CODES, coded, make_autoencoder, mixture_of_codes, shapes
from transfusion.artifacts.mixture import read_mixture
from transfusion.ingest.reader import MixtureReader
from transfusion.model.config import ModelConfig
from transfusion.train.config import TrainConfig
from transfusion.train.step import TransformerTrainee

pytestmark = pytest.mark.usefixtures("world")


def test_codes_are_learned_as_words_are(tmp_path):
    root = tmp_path / "store"
    listing = shapes(root)
    tokens = coded(root, listing, make_autoencoder(root, codebook_size=CODES))
    mixture = mixture_of_codes(root, tokens)
    config = TrainConfig(
        steps=3,
        seed=0,
        model=ModelConfig(dim=32, depth=1, num_heads=2, patch_size=1, qk_norm="rms", norm="post"),
        objective={"z_loss_weight": 1e-5},
    )
    plan = read_mixture(mixture)
    trainee = TransformerTrainee(
        config,
        MixtureReader(mixture, seed=0, objective=config.objective),
        num_pieces=plan.num_pieces,
        num_codes=plan.num_codes,
        latent_channels=plan.latent_channels,
        device=torch.device("cpu"),
    )
    pieces = plan.num_pieces
    assert trainee.model.vocab_size == pieces + 5 + CODES
    result = trainee.forward_backward(0)
    values = result.values
    assert values["images"] == 0
    assert values["lm_loss"] == pytest.approx(math.log(pieces + 5 + CODES), rel=0.1)
    assert values["loss"] == pytest.approx(values["lm_loss"] + values["z_loss"], rel=1e-6)
    assert values["z_loss"] == pytest.approx(1e-5 * math.log(pieces + 5 + CODES) ** 2, rel=0.1)
    batches = [trainee._source.micro_batch(0, lane) for lane in range(plan.lanes)]
    targets = torch.cat([batch.text_targets[batch.text_weight > 0] for batch in batches])
    codes = int((targets >= pieces + 5).sum())
    texts = len(targets) - codes
    assert min(codes, texts) > 0
    parts = codes * values["code_loss"] + texts * values["text_loss"]
    assert parts / (codes + texts) == pytest.approx(values["lm_loss"], rel=1e-6)
    assert values["code_loss"] != values["text_loss"]
    assert result.rates["images"] == codes / plan.latent_height / plan.latent_width
    assert set(result.shown) == {"text_loss", "code_loss"}
    assert {"stream_rms_text", "stream_rms_image"} <= set(values)
    gradient = trainee.model.embedding.weight.grad.full_tensor()
    assert (gradient[pieces + 5 :].abs().sum(dim=1) > 0).sum() > 1
    assert trainee.validate().keys() >= {"lm_loss", "code_loss", "text_loss", "z_loss"}
