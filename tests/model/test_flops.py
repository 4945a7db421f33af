"""FLOPs by formula against PyTorch's own counter, forward and backward, and against masks that are written out."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.model.conftest import CONFIGS, LATENT_SHAPE, SPECIAL, make_batch, make_document
from tests.model.dense import dense
from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.flops import Work, forward_flops, training_flops
from transfusion.model.presets import LLAMA_VOCABULARY, preset
from transfusion.model.transformer import TransfusionModel
from transfusion.sequence.ranges import ImagePlace, key_ranges

LATENT = (8, 32, 32)


def counted_on_meta(config, *, positions, text_rows, images):
    """FLOPs of forward and of both ways, with dense attention; nothing is computed."""
    with torch.device("meta"):
        model = TransfusionModel(config, vocab_size=LLAMA_VOCABULARY, latent_channels=LATENT[0])
        ids = torch.zeros(1, positions, dtype=torch.long)
        timesteps = torch.zeros(images, dtype=torch.long)
        noisy = torch.zeros(images, *LATENT)
    with FlopCounterMode(display=False) as forward:
        encoded = model.encode_images(noisy, timesteps)
        places = torch.arange(encoded.patches.shape[0] * encoded.patches.shape[1], device="meta")
        patches = encoded.patches.flatten(0, 1)
        hidden = model.embed_tokens(ids).flatten(0, 1).index_copy(0, places, patches)
        hidden = model.transform(hidden[None], position_ids=ids, attention=dense, images=places)
        rows = hidden[0, : len(patches)].unflatten(0, encoded.patches.shape[:2])
        logits = model.logits(hidden[0, :text_rows])
        epsilon = model.decode_images(rows, timesteps, encoded)
        loss = logits.sum() + epsilon.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize(
    ("name", "patch_size", "adapter"),
    [
        ("0.16B", 1, "linear"),
        ("0.16B", 2, "unet"),
        ("0.37B", 2, "linear"),
        ("0.76B", 4, "linear"),
        ("0.76B", 1, "unet"),
        ("0.76B", 8, "unet"),
        ("1.4B", 4, "unet"),
        ("7B", 2, "linear"),
        ("7B", 8, "unet"),
        ("TinyLlama-1.1B", 2, "linear"),
        ("small", 4, "unet"),
        ("quickstart", 2, "unet"),
    ],
)
def test_the_formula_counts_what_pytorch_counts(name, patch_size, adapter):
    config = preset(name, patch_size=patch_size, adapter=adapter)
    held = {"positions": 1200, "text_rows": 100, "images": 1}
    once, both = counted_on_meta(config, **held)
    work = Work(**held, key_pairs=held["positions"] ** 2)
    told = {"vocab_size": LLAMA_VOCABULARY, "latent_shape": LATENT}
    assert sum(forward_flops(config, work, **told).values()) == once
    assert training_flops(config, work, **told) == pytest.approx(both, rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_is_counted_over_the_keys_that_are_seen(name):
    """With a block for each query the CPU backend multiplies its key range and nothing else."""
    config = CONFIGS[name].model_copy(update={"query_block": 1})
    kinds = ["captioned", "text", "dropped", "interleaved", "image_first", "text"]
    # A block is shared by all sequences of a batch, so one sequence.
    batch = make_batch(
        [[make_document(kind, seed=seed) for seed, kind in enumerate(kinds)]],
        sequence_length=96,
        image_slots=5,
        text_rows=48,
    )
    model = TransfusionModel(config, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT_SHAPE[0])
    model.init_weights(0)
    with FlopCounterMode(display=False) as counter:
        output = model(batch, batch.latents)
        (output.logits.sum() + output.epsilon.sum()).backward()
    work = Work.of(batch)
    assert work.images == 5
    assert work.key_pairs < 0.2 * 96**2
    # Rows without a target go through the head as well.
    work = Work(positions=96, text_rows=48, images=5, key_pairs=work.key_pairs)
    told = {"vocab_size": SPECIAL.vocab_size, "latent_shape": LATENT_SHAPE}
    keys = forward_flops(config, work, **told)["keys"]
    by_name = counter.get_flop_counts()["Global"]
    assert by_name[torch.ops.aten.bmm] == 3 * keys
    assert training_flops(config, work, **told) == pytest.approx(
        counter.get_total_flops(), rel=0.03
    )


def test_only_used_slots_and_rows_are_work():
    documents = [make_document("captioned", seed=1), make_document("text", seed=2)]
    work = Work.of(make_batch([documents, []], image_slots=6, text_rows=64))
    # 1 + 4 + 6 + 1 and 1 + 7 + 1 positions; a sequence of padding sees itself alone.
    assert work == Work(
        positions=96,
        text_rows=(4 + 2) + 8,
        images=1,
        key_pairs=12 * 13 // 2 + 4 * 3 // 2 + 9 * 10 // 2 + (48 - 21) + 48,
    )


@pytest.mark.parametrize("image_attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("num_patches", [16, 64, 256])
def test_the_usual_sequence_is_that_of_the_key_ranges(num_patches, image_attention):
    pair, images = 20 + num_patches + 4, 3
    length = 2 * pair * images
    ranges = key_ranges(
        document_lengths=[pair * images] + [pair] * images,
        images=[
            ImagePlace(boi=pair * (images + index) + 21, num_patches=num_patches)
            for index in range(images)
        ],
        sequence_length=length,
        image_attention=image_attention,
    )
    work = Work.usual(
        num_patches,
        sequence_length=length,
        image_attention=image_attention,
        caption_tokens=20,
    )
    assert work.images == images
    assert work.key_pairs == (ranges.hi - ranges.lo).sum()
    assert work.text_rows == pair * images - 1 + images * (20 + 2)


@pytest.mark.parametrize(("name", "gflops"), [("0.16B", 0.8555), ("1.4B", 7.9943), ("7B", 40.2993)])
def test_training_takes_six_flops_a_weight_and_twelve_a_key(name, gflops):
    """The paper's main setting, linear at 2 x 2: 2,048 positions of text and 64 / 9 pairs of 288."""
    config = preset(name)
    work = Work.usual(256)
    told = {"vocab_size": LLAMA_VOCABULARY, "latent_shape": LATENT}
    per_position = training_flops(config, work, **told) / 4096
    assert per_position / 1e9 == pytest.approx(gflops, rel=1e-4)
    blocks = config.depth * (4 * config.dim**2 + 3 * config.dim * config.hidden_dim)
    head = LLAMA_VOCABULARY * config.dim * (2047 + 64 / 9 * 30) / 4096
    keys = (2048 * 2049 / 2 + 64 / 9 * (288 * 289 / 2 + 256 * 255 / 2)) / 4096
    by_hand = 6 * (blocks + head) + 12 * config.depth * config.dim * keys
    assert per_position == pytest.approx(by_hand, rel=2e-3)


def test_a_shared_head_of_keys_costs_its_matrices_and_no_scores():
    plain = ModelConfig(dim=32, depth=1, num_heads=4)
    shared = plain.model_copy(update={"num_kv_heads": 1})
    work = Work(positions=10, text_rows=0, images=0, key_pairs=55)
    told = {"vocab_size": 7, "latent_shape": (4, 8, 8)}
    one, other = forward_flops(plain, work, **told), forward_flops(shared, work, **told)
    assert other["keys"] == one["keys"] == 4 * 32 * 55
    assert one["blocks.attention"] - other["blocks.attention"] == 2 * 10 * 2 * 32 * (32 - 8)


def test_the_unets_cost_goes_with_images_and_not_with_positions():
    config = ModelConfig(
        dim=32, depth=1, num_heads=4, adapter="unet", unet=UNetConfig(channels=(8, 16))
    )
    told = {"vocab_size": 7, "latent_shape": (4, 8, 8)}
    one = forward_flops(config, Work(positions=10, text_rows=1, images=1, key_pairs=55), **told)
    two = forward_flops(config, Work(positions=20, text_rows=1, images=2, key_pairs=55), **told)
    adapter = [name for name in one if name.startswith(("down.", "up."))]
    assert adapter
    assert all(two[name] == 2 * one[name] > 0 for name in adapter)
    assert two["head"] == one["head"]
