"""The ResNet-50 of SSCD (arXiv:2202.10261), with torchvision's names under `backbone`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

POWER = 3.0
"""Of the generalised mean that takes the place of average pooling (arXiv:1711.02512)."""


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1 (arXiv:1512.03385, with the stride where torchvision has it)."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x_BCHW if self.downsample is None else self.downsample(x_BCHW)))


def _stage(inside: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inside, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))


class ResNet50(nn.Module):
    """(B, 3, H, W) to (B, dimension): generalised mean over the places, then a linear layer."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.layer1, self.layer2 = _stage(64, 64, 3, 1), _stage(256, 128, 4, 2)
        self.layer3, self.layer4 = _stage(512, 256, 6, 2), _stage(1024, 512, 3, 2)
        self.fc = nn.Linear(2048, dimension)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x_B3HW))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(generalised_mean(x))
        return logits


class Sscd(nn.Module):
    """(B, 3, H, W) to descriptors of unit length, (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet50(512)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return F.normalize(self.backbone(x_B3HW))


def generalised_mean(x_BCHW: Tensor) -> Tensor:
    """(mean over places of x^p)^(1/p), (B, C)."""
    return x_BCHW.clamp(min=1e-6).pow(POWER).mean((2, 3)).pow(1 / POWER)
