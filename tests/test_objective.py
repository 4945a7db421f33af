"""The losses against numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from transfusion.diffusion.config import ObjectiveConfig
from transfusion.diffusion.noising import Noised, Noising
from transfusion.model.transformer import ModelOutput
from transfusion.objective import LossSums, combine, loss_sums
from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds


def batch_of(num_images, *, image_slots=3, text_rows=6):
    noise = np.zeros((1, 2, 2), np.float32)
    image = ImageSpan(1, 1, ImageInput(latent=noise, noise=noise, timestep=0))
    return assemble(
        [[Document((TextSpan(np.array([1], np.int32)), *[image] * num_images))]],
        layout=SequenceLayout(patch_size=2),
        special=SpecialIds.after(3),
        sequence_length=12,
        image_slots=image_slots,
        text_rows=text_rows,
        latent_shape=(1, 2, 2),
    )


def test_sums_are_what_they_are_by_hand():
    batch = batch_of(2)  # BOS c BOI p EOI BOI p EOI EOS: targets c, BOI, BOI, EOS
    logits = torch.zeros(6, 8)
    logits[0, 1] = math.log(9.0)  # probability 9/16 of the target; the others 1/8
    logits[4:] = 100.0 * torch.randn(2, 8)  # rows without a target
    epsilon = torch.zeros(3, 1, 2, 2)
    epsilon[0] = torch.tensor([[2.0, 0.0], [0.0, 0.0]])  # mean square 1
    epsilon[1] = 3.0  # mean square 9
    epsilon[2] = 1e4  # an unused slot
    sums = loss_sums(ModelOutput(logits=logits, epsilon=epsilon), batch)
    assert float(sums.lm_count) == 4
    assert float(sums.image_count) == 2
    assert float(sums.lm_sum) == pytest.approx(math.log(16 / 9) + 3 * math.log(8))
    assert float(sums.diffusion_sum) == pytest.approx(10.0)
    loss = combine(sums, global_lm_count=8, global_image_count=torch.tensor(4.0))
    assert float(loss) == pytest.approx((math.log(16 / 9) + 3 * math.log(8)) / 8 + 5 * 10 / 4)


def test_shares_of_micro_batches_add_up_to_the_loss_of_the_whole():
    parts = [
        LossSums(
            lm_sum=torch.tensor(lm),
            lm_count=torch.tensor(n),
            diffusion_sum=torch.tensor(diffusion),
            image_count=torch.tensor(images),
            image_errors=torch.tensor([diffusion]),
        )
        for lm, n, diffusion, images in [
            (6.0, 2.0, 1.0, 1.0),
            (2.0, 8.0, 8.0, 3.0),
            (0.0, 0.0, 0.0, 0.0),
        ]
    ]
    shares = [
        combine(part, global_lm_count=10.0, global_image_count=4.0, diffusion_weight=2.0)
        for part in parts
    ]
    # 8 / 10 + 2 * 9 / 4, where a mean of means would give another number.
    assert float(torch.stack(shares).sum()) == pytest.approx(5.3)


def test_a_batch_without_images_or_text_has_a_loss_of_zero_not_nan():
    nothing = torch.tensor(0.0)
    sums = LossSums(
        lm_sum=nothing,
        lm_count=nothing,
        diffusion_sum=nothing,
        image_count=nothing,
        image_errors=torch.zeros(0),
    )
    assert float(combine(sums, global_lm_count=nothing, global_image_count=0.0)) == 0.0


def test_losses_are_fp32_whatever_the_model_computes_in():
    batch = batch_of(1)
    output = ModelOutput(
        logits=torch.zeros(6, 8, dtype=torch.bfloat16), epsilon=torch.ones(3, 1, 2, 2)
    )
    sums = loss_sums(output, batch)
    assert {sums.lm_sum.dtype, sums.diffusion_sum.dtype} == {torch.float32}
    assert float(sums.lm_sum) == pytest.approx(3 * math.log(8), rel=1e-6)


def test_a_noise_limit_above_the_schedule_is_refused():
    with pytest.raises(ValidationError, match="at most num_timesteps 100, got 500"):
        ObjectiveConfig(num_timesteps=100)


def noised(target, *, weight=None):
    return Noised(latents=torch.zeros(3, 1, 2, 2), target=target, weight=weight)


def test_the_error_is_in_the_target_and_weights_move_the_sum_but_not_the_count():
    batch = batch_of(2)
    output = ModelOutput(logits=torch.zeros(6, 8), epsilon=torch.ones(3, 1, 2, 2))
    target = torch.full((3, 1, 2, 2), 3.0)  # an error of 4 in each image
    assert float(loss_sums(output, batch, noised(target)).diffusion_sum) == pytest.approx(8.0)
    weight = torch.tensor([0.5, 2.0, 1e4])  # the third is an unused slot
    sums = loss_sums(output, batch, noised(target, weight=weight))
    assert float(sums.diffusion_sum) == pytest.approx(10.0)
    assert float(sums.image_count) == 2


def test_the_default_objective_sums_to_the_bit_what_the_noise_alone_does():
    batch = batch_of(2)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 1, 2, 2, generator=generator)
    batch = dataclasses.replace(batch, latents=latents, noise=noise)
    output = ModelOutput(
        logits=torch.zeros(6, 8), epsilon=torch.randn(3, 1, 2, 2, generator=generator)
    )
    default = Noising.of(ObjectiveConfig()).apply(latents, noise, torch.tensor([0, 400, 999]))
    assert torch.equal(
        loss_sums(output, batch, default).diffusion_sum, loss_sums(output, batch).diffusion_sum
    )


def test_z_loss_is_the_squared_log_of_the_denominator():
    batch = batch_of(2)
    torch.manual_seed(0)
    logits = torch.randn(6, 8, requires_grad=True)
    output = ModelOutput(logits=logits, epsilon=torch.zeros(3, 1, 2, 2))
    plain, with_z = loss_sums(output, batch), loss_sums(output, batch, z_loss_weight=0.1)
    assert plain.z_sum is None
    assert torch.equal(plain.lm_sum, with_z.lm_sum)
    by_hand = sum(math.log(row.exp().sum()) ** 2 for row in logits.detach()[:4])
    assert float(with_z.z_sum) == pytest.approx(0.1 * by_hand, rel=1e-5)
    losses = [combine(sums, global_lm_count=8, global_image_count=4) for sums in (plain, with_z)]
    assert float(losses[1] - losses[0]) == pytest.approx(0.1 * by_hand / 8, rel=1e-4)


def test_the_loss_of_codes_is_the_part_of_targets_from_the_first_code_on():
    batch = batch_of(2)
    torch.manual_seed(0)
    logits = torch.randn(6, 8)
    output = ModelOutput(logits=logits, epsilon=torch.zeros(3, 1, 2, 2))
    targets, weights = batch.text_targets.tolist(), batch.text_weight.tolist()
    first_code = sorted(target for target, weight in zip(targets, weights, strict=True) if weight)[
        1
    ]
    plain, parted = loss_sums(output, batch), loss_sums(output, batch, first_code=first_code)
    assert plain.code_sum is plain.code_count is None
    assert torch.equal(plain.lm_sum, parted.lm_sum)
    of_codes = [
        math.log(row.exp().sum()) - float(row[target])
        for row, target, weight in zip(logits, targets, weights, strict=True)
        if weight and target >= first_code
    ]
    assert 0 < len(of_codes) < sum(weights)
    assert float(parted.code_count) == len(of_codes)
    assert float(parted.code_sum) == pytest.approx(sum(of_codes), rel=1e-5)
