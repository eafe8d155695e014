"""The networks that are our own. Names and sizes are those that torchvision 0.28 and the published weights have.

Their outputs were compared once with torchvision's ResNet-50 and pytorch-fid's Inception, with equal random weights: no difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sdtune.metrics.nets import inception, resnet, trunks


def fingerprint(net: nn.Module) -> str:
    """Of all names and sizes."""
    lines = [f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(net.state_dict().items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def test_names_and_sizes_are_the_published_ones() -> None:
    """The fingerprints were taken from torchvision's own models (Inception with 1008 classes and without its second head)."""
    with torch.device("meta"):
        assert fingerprint(inception.Inception()) == "760681d791cb624e"
        assert fingerprint(resnet.ResNet50(512)) == "e9a0ba12cf52df43"
        assert fingerprint(trunks.alexnet()) == "b1e207d270dfe02f"
        assert fingerprint(trunks.vgg16()) == "4c3222feef6e051f"


def test_averages_do_not_count_what_is_padded() -> None:
    assert torch.allclose(inception.average(torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 5, 5))


def test_the_last_block_takes_the_maximum_and_the_one_before_the_average() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 8, 4, 4)
    for last, pool in ((True, nn.MaxPool2d(3, 1, 1)), (False, nn.AvgPool2d(3, 1, 1, count_include_pad=False))):
        block = inception.BlockE(8, last).eval()
        with torch.inference_mode():
            found = block(x)[:, -192:]
            assert torch.allclose(found, block.branch_pool(pool(x)))


def test_channels_of_the_trunks() -> None:
    """The widths that the weights of LPIPS 0.1 have."""
    x = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        assert [f.shape[1] for f in trunks.alexnet()(x)] == [64, 192, 384, 256, 256]
        assert [f.shape[1] for f in trunks.vgg16()(x)] == [64, 128, 256, 512, 512]


@pytest.mark.parametrize("make", [trunks.alexnet, trunks.vgg16])
def test_trunks_are_looked_at_behind_relus(make: Callable[[], trunks.Trunk]) -> None:
    with torch.device("meta"):
        trunk = make()
    assert all(isinstance(trunk.features[place], nn.ReLU) for place in trunk.looked_at)
    assert trunk.looked_at[-1] == len(trunk.features) - 1  # nothing is computed for nothing


def test_generalised_mean() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    expected: Tensor = torch.tensor([[((1 + 8 + 27 + 64) / 4) ** (1 / 3)]])
    assert torch.allclose(resnet.generalised_mean(x), expected)


def test_a_stage_halves_in_its_first_block_alone() -> None:
    stage = resnet._stage(64, 16, 2, 2).eval()
    with torch.inference_mode():
        assert stage(torch.zeros(1, 64, 8, 8)).shape == (1, 64, 4, 4)
    assert [block.downsample is None for block in stage] == [False, True]
