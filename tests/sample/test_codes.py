"""Images drawn as codes: against the model without a cache, and what may come when."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import NUM_PIECES, hidden_behind, package_config, tiny_tokenizer
from transfusion.autoencoder.calibrate import calibrate
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.network import build_network, save_network
from transfusion.errors import ArtifactError
from transfusion.model.config import ModelConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.package.load import load_package
from transfusion.package.write import write_package
from transfusion.sample.engine import generate
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, TextPart
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sampler
from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, TextSpan
from transfusion.sequence.layout import SequenceLayout

CODES, SIDE = 12, 4
MODEL = ModelConfig(dim=32, depth=2, num_heads=4, patch_size=1)


def config_of_codes(num_pieces=NUM_PIECES):
    return package_config(
        model=MODEL,
        num_pieces=num_pieces,
        num_codes=CODES,
        layout=SequenceLayout(patch_size=1),
        latent_channels=1,
        latent_height=SIDE,
        latent_width=SIDE,
    )


def model_of(config, seed=0):
    model = TransfusionModel(MODEL, vocab_size=config.special.vocab_size, latent_channels=1)
    model.init_weights(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "head.weight" or ("attention" in name and parameter.ndim == 2):
                parameter.mul_(4)
    return model.eval()


@pytest.fixture(scope="module")
def config():
    return config_of_codes()


def next_scores(model, config, ids):
    """Log probabilities of the codes behind some ids, from the packed forward that trains."""
    document = Document((TextSpan(np.array(ids, np.int32)),), opens=True, closes=False)
    batch = assemble(
        [[document]], layout=config.layout, special=config.special, sequence_length=64,
        image_slots=1, text_rows=64, latent_shape=config.latent_shape,
    )  # fmt: skip
    # The last id has no target: its row is asked for.
    rows = torch.full_like(batch.text_rows, len(ids))
    batch = type(batch)(**{
        **{name: getattr(batch, name) for name in batch.__slots__}, "text_rows": rows,
    })  # fmt: skip
    logits = model(batch, batch.latents).logits[0]
    return logits[config.special.first_code :].log_softmax(0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_codes_are_those_of_the_whole_forward(config, guidance):
    model, special = model_of(config), config.special
    prompt = (3, 7, 1)
    params = SamplingParams(
        modalities=("image",), guidance_scale=guidance, code_temperature=0.0, seed=3
    )
    with torch.no_grad():
        (result,) = generate(model, config, [Request((TextPart(prompt),), params)])
        expected: list[int] = []
        for _ in range(SIDE * SIDE):
            spelled = [special.first_code + code for code in expected]
            scores = next_scores(model, config, [*prompt, special.boi, *spelled])
            if guidance != 1:
                null = next_scores(model, config, [special.boi, *spelled])
                scores = null + guidance * (scores - null)
            expected.append(int(scores.argmax()))
    (codes,) = result.images
    assert codes.shape == (1, SIDE, SIDE)
    assert codes.flatten().tolist() == expected
    assert len(set(expected)) > 1


def test_draws_are_a_row_s_own_and_follow_temperature_and_top_p(config):
    model = model_of(config)

    def draw(*seeds, **more):
        requests = [
            Request(
                (TextPart((1, 2 + seed)),), SamplingParams(modalities=("image",), seed=seed, **more)
            )
            for seed in seeds
        ]
        with torch.no_grad():
            return [
                result.images[0].flatten().tolist() for result in generate(model, config, requests)
            ]

    assert draw(5)[0] == draw(1, 2, 5)[2]
    assert draw(5)[0] != draw(6)[0]
    assert draw(5, code_top_p=1e-6) == draw(5, code_temperature=0.0)


def test_codes_come_between_boi_and_eoi_alone(config):
    model, special = model_of(config), config.special
    with torch.no_grad():
        # A head that wants codes always, and BOI next.
        model.head.weight.zero_()
        model.head.weight[special.first_code :] = 50.0
    params = SamplingParams(temperature=1.0, max_tokens=8, max_images=2)
    with torch.no_grad():
        results = generate(
            model,
            config,
            [Request((TextPart((1,)),), params.model_copy(update={"seed": s})) for s in range(8)],
        )
    for result in results:
        for part in result.parts:
            if isinstance(part, TextPart):
                assert max(part.ids) < special.first_code
            else:
                assert part.latent.min() >= 0
                assert part.latent.max() < CODES


def test_later_text_reads_the_codes_of_an_image(config):
    """The hidden state behind an image part is that of its tokens spelled out."""
    model, special = model_of(config), config.special
    codes = torch.arange(SIDE * SIDE).view(1, SIDE, SIDE) % CODES
    spelled = TextPart((special.boi, *(special.first_code + codes.flatten()).tolist(), special.eoi))
    behind = [
        hidden_behind(model, config, [TextPart((special.bos, 4)), part])
        for part in (ImagePart(codes), spelled)
    ]
    assert torch.equal(*behind)


def autoencoder_of(folder, codebook_size=CODES):
    torch.manual_seed(0)
    network = build_network(
        AutoencoderConfig(
            block_channels=(8, 8, 8), latent_channels=4, norm_groups=4, codebook_size=codebook_size
        ),
        sample_size_px=16,
    )
    save_network(folder, config=network.config, weights=network.state_dict())
    calibrate(network, torch.zeros((2, 16, 16, 3), dtype=torch.uint8)).write(folder)
    return folder


def package_of(folder: Path, codebook_size=CODES):
    tokenizer = tiny_tokenizer()
    config = config_of_codes(tokenizer.num_pieces)
    weights = model_of(config).state_dict()
    write_package(
        folder / "package",
        config=config,
        weights={"raw": weights, "ema": weights},
        tokenizer=tokenizer.model,
        autoencoder=autoencoder_of(folder / "autoencoder", codebook_size),
    )
    return folder / "package"


def test_a_package_of_codes_draws_and_describes(tmp_path):
    sampler = Sampler(load_package(package_of(tmp_path)))
    params = SamplingParams(modalities=("image",), seed=1)
    (drawn,) = sampler.sample([sampler.request("a red circle", params)])
    (image,) = drawn.images
    assert image.shape == (16, 16, 3)
    told = SamplingParams(modalities=("text",), max_tokens=5, temperature=0.0)
    (sample,) = sampler.sample([sampler.request([image], told)])
    assert sample.prompt_tokens == 1 + SIDE * SIDE + 2
    (part,) = sampler.encode_images([image])
    autoencoder = sampler.package.autoencoder
    assert torch.equal(part.latent[0], autoencoder.encode_indices(torch.from_numpy(image)[None])[0])
    card = (tmp_path / "package" / "README.md").read_text()
    assert "4 x 4 codes of 12" in card
    assert "solver" not in card.split("## Use")[0]


def test_an_autoencoder_with_other_codes_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="has 13 codes, the config says 12"):
        load_package(package_of(tmp_path, codebook_size=13))
