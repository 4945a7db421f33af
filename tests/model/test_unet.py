"""The U-Net's residual block against that of diffusers, with the same weights."""

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from transfusion.model.unet import ResidualBlock

OURS_TO_THEIRS = {
    "norm": "norm1",
    "conv": "conv1",
    "time": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}


@pytest.mark.parametrize(("wide", "narrow"), [(32, 32), (64, 32), (16, 32)])
def test_a_residual_block_is_that_of_diffusers(wide, narrow):
    torch.manual_seed(0)
    ours = ResidualBlock(wide, narrow, time_dim=24)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = ResnetBlock2D(
        in_channels=wide,
        out_channels=narrow,
        temb_channels=24,
        groups=ours.norm.num_groups,
        groups_out=ours.norm_out.num_groups,
        eps=ours.norm.eps,
        skip_time_act=True,  # here the time comes through it already, once for all blocks
    )
    weights = {
        ".".join([OURS_TO_THEIRS[name.split(".")[0]], name.split(".")[1]]): value
        for name, value in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)
    x, time = torch.randn(3, wide, 6, 4), torch.randn(3, 24)
    torch.testing.assert_close(ours(x, time), theirs(x, time), atol=1e-5, rtol=1e-5)
