"""The stages as a job sees them."""

import subprocess
import sys

import pytest

from tests.train.worlds import config
from transfusion.artifacts.mixture import Mixture
from transfusion.errors import ArtifactError
from transfusion.train.parallel import set_precision
from transfusion.train.run import check_plan


def plan(**changed):
    values = {
        "sequence_length": 32, "sequences_per_micro_batch": 2, "lanes": 2, "steps": 6,
        "steps_per_block": 2, "image_slots": 4, "text_rows": 40, "latent_channels": 4,
        "latent_height": 4, "latent_width": 4, "num_pieces": 40, "layout": {"patch_size": 2},
        "caption_drop": 0.1, "seed": 0, "validation_micro_batches": 1, "sources": {}, "statistics": {},
    }  # fmt: skip
    return Mixture.model_validate(values | changed)


def test_a_plan_for_another_model_is_refused_with_every_reason():
    check_plan(config(steps=6), plan())
    with pytest.raises(ArtifactError) as told:
        check_plan(config(steps=7), plan(layout={"patch_size": 4}))
    first, second = str(told.value).splitlines()
    assert "steps: is 7 but the mixture plans 6" in first
    assert "model.patch_size: is 2 but the mixture was packed for 4" in second


def test_one_batch_again_and_again_needs_no_longer_plan():
    check_plan(config(steps=7, repeat_first_step=True), plan())


@pytest.mark.parametrize(
    "stage", ["transfusion.train", "transfusion.train.autoencoder", "transfusion.autoencoder"]
)
def test_a_declaration_loads_neither_torch_nor_ray(stage):
    program = (
        f"import sys, {stage} as stage; stage.STAGE; "
        "assert not {'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )


def test_plain_fp32_is_exact_after_any_other_precision():
    import torch

    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, 256, 256), generator=draw)
    image, kernel = (
        torch.randn(1, 16, 8, 8, generator=draw),
        torch.randn(16, 16, 3, 3, generator=draw),
    )
    exact = (a.double() @ b.double(), torch.conv2d(image.double(), kernel.double()))
    for precision, error in (("fp32_bf16_inner", 0.5), ("fp32", 1e-4)):
        set_precision(precision, device=torch.device("cpu"), cpu_threads=1)
        for found, true in zip((a @ b, torch.conv2d(image, kernel)), exact, strict=True):
            torch.testing.assert_close(found.double(), true, atol=error, rtol=0)


def test_bf16_without_hardware_is_warned_of(monkeypatch, caplog):
    import torch

    monkeypatch.setattr("transfusion.train.parallel.cpu_has_bf16", lambda: False)
    try:
        set_precision("bf16", device=torch.device("cpu"), cpu_threads=1)
    finally:
        set_precision("fp32", device=torch.device("cpu"), cpu_threads=1)
    assert "50 times slower" in caplog.text
