from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn


@pytest.fixture
def sd1_unet() -> Callable[[], nn.Module]:
    """A tiny U-Net of Stable Diffusion 1's class and block types."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        unet: nn.Module = UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
            attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        return unet

    return build
