"""VGG after Simonyan, Zisserman, Very Deep Convolutional Networks, 2014 (arXiv:1409.1556).

From torchvision, changed for 32x32 images.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from draco.models.model import Model, Shape, Size

if TYPE_CHECKING:
    from torch import nn


# Convolutions of 64, 128, 256, 512 and 512 channels (Simonyan, Zisserman, table 1).
_BLOCKS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


def _size(name: str, shape: Shape, classes: int) -> Size:
    """Count 3x3 convolutions with bias, two weights a channel for BatchNorm, and the classifier."""
    blocks = zip((64, 128, 256, 512, 512), _BLOCKS[name.removesuffix("_bn")], strict=True)
    widths = [shape[0], *(width for width, count in blocks for _ in range(count))]
    convolutions = sum((9 * a + 1) * b for a, b in pairwise(widths))
    statistics = 2 * sum(widths[1:]) if name.endswith("_bn") else 0
    return Size(convolutions + statistics + 2 * (512 + 1) * 512 + (512 + 1) * classes, statistics)


def model(name: str) -> Model:
    """Return torchvision's VGG for small images: 15,253,578 parameters for vgg16_bn on CIFAR-10.

    Changed from torchvision: the classifier is dropout, 512, dropout, 512, classes as in the original Draco; theirs is
    25088-4096-4096-classes. Average pooling to 1x1 comes before it, which changes nothing on 32x32 images. The first
    convolution takes as many channels as the images have.
    Different from the original: it has VGG-11, 13 and 16 with BatchNorm only; the dropout masks come from explicit
    generators (`set_dropout`).
    """

    def build(shape: Shape, classes: int) -> nn.Module:
        import torch
        from torch import nn

        from draco.models.vision import torchvision
        from draco.models.weights import materialise

        with torch.device("meta"):
            net: nn.Module = getattr(torchvision().models, name)(init_weights=False)
            features = net.get_submodule("features")
            assert isinstance(features, nn.Sequential)
            features[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
            net.avgpool = nn.AdaptiveAvgPool2d(1)
            net.classifier = nn.Sequential(
                nn.Dropout(0.5),
                nn.Linear(512, 512),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(512, 512),
                nn.ReLU(),
                nn.Linear(512, classes),
            )
        return materialise(net)

    # The last BatchNorm must see 2x2 pixels, or the statistics of a batch of one sample would be undefined.
    return Model(build, smallest=32, batch_norm=name.endswith("_bn"), size=partial(_size, name))
