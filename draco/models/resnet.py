"""ResNet after He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385).

From torchvision, changed for 32x32 images.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from draco.models.model import Model, Shape, Size

if TYPE_CHECKING:
    from torch import nn


# Blocks in each of the four stages, and convolutions in each block (He et al., table 1).
_STAGES = {
    "resnet18": ((2, 2, 2, 2), 2), "resnet34": ((3, 4, 6, 3), 2), "resnet50": ((3, 4, 6, 3), 3),
    "resnet101": ((3, 4, 23, 3), 3), "resnet152": ((3, 8, 36, 3), 3),
}  # fmt: skip


def _size(name: str, shape: Shape, classes: int) -> Size:
    """Count convolutions without bias (a, b, side), each with BatchNorm, and the linear layer."""
    stages, depth = _STAGES[name]
    convolutions, inner = [(shape[0], 64, 3)], 64
    for stage, blocks in enumerate(stages):
        width = 64 * 2**stage
        outer = width if depth == 2 else 4 * width
        for block in range(blocks):
            if depth == 2:
                convolutions += [(inner, width, 3), (width, width, 3)]
            else:
                convolutions += [(inner, width, 1), (width, width, 3), (width, outer, 1)]
            if not block and inner != outer:
                convolutions.append((inner, outer, 1))
            inner = outer
    statistics = 2 * sum(b for _, b, _ in convolutions)
    weights = sum(a * b * side**2 for a, b, side in convolutions)
    return Size(weights + statistics + (inner + 1) * classes, statistics)


def model(name: str) -> Model:
    """Return torchvision's ResNet for small images: 11,173,962 parameters for resnet18 on CIFAR-10.

    Changed from torchvision: the stem is one 3x3 convolution of stride 1 without max-pooling, on as many channels as
    the images have. Theirs is for 224x224: 7x7, stride 2, max-pooled.
    Different from the original Draco, the widespread CIFAR ResNet by kuangliu: average pooling is global instead of
    4x4, which is the same on 32x32. Convolutions start He-normal instead of with torch's default.
    """

    def build(shape: Shape, classes: int) -> nn.Module:
        import torch
        from torch import nn

        from draco.models.vision import torchvision
        from draco.models.weights import materialise

        with torch.device("meta"):  # sizes only, so that no weights are drawn twice
            net: nn.Module = getattr(torchvision().models, name)(num_classes=classes)
            net.conv1 = nn.Conv2d(shape[0], 64, 3, stride=1, padding=1, bias=False)
            net.maxpool = nn.Identity()
        return materialise(net)

    # The last stage must leave 2x2 pixels, or the statistics of a batch of one sample would be undefined.
    return Model(build, smallest=9, batch_norm=True, size=partial(_size, name))
