"""AlexNet (arXiv:1404.5997) and VGG-16 (arXiv:1409.1556) up to the layers that LPIPS looks at, with torchvision's names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Trunk(nn.Module):
    """`features` as torchvision numbers them; `forward` gives what comes out of the layers `looked_at`."""

    def __init__(self, layers: Sequence[nn.Module], looked_at: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.looked_at = tuple(looked_at)

    def forward(self, x_B3HW: Tensor) -> list[Tensor]:
        found = []
        for place, layer in enumerate(self.features):
            x_B3HW = layer(x_B3HW)
            if place in self.looked_at:
                found.append(x_B3HW)
        return found


def alexnet() -> Trunk:
    """After its five ReLUs: 64, 192, 384, 256 and 256 channels."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inside, outside in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
    return Trunk(layers, (1, 4, 7, 9, 11))


def vgg16() -> Trunk:
    """After the last ReLU before each pooling: 64, 128, 256, 512 and 512 channels."""
    layers, looked_at, inside = list[nn.Module](), list[int](), 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(count):
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU()]
            inside = width
        looked_at.append(len(layers) - 1)
    return Trunk(layers, looked_at)
