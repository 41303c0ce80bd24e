"""Models by name, their dropout made explicit, and their parameters and BatchNorm statistics as flat vectors.

Sources: LeNet and FC after the original Draco (hwang595/Draco, src/model_ops/lenet.py and fc_nn.py); ResNet after He,
Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385), VGG after Simonyan, Zisserman,
Very Deep Convolutional Networks, 2014 (arXiv:1409.1556), both from torchvision and changed for 32x32 images. Each
builder states how it differs from the original Draco's model.
Shapes: N samples, an image is (c, h, w), p parameters, b BatchNorm statistics (mean and variance of every channel).
Invariants: no function reads or leaves changed any global random state; every model gives logits, to be used with
cross entropy; torchvision is imported only when a ResNet or VGG is built.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from draco.models.vision import torchvision
from draco.sampling import derive_seed

Shape = tuple[int, int, int]  # (c, h, w)
Segments = Sequence[tuple[int, torch.Generator]]  # (rows of the batch, generator of their dropout masks), in order


class Model(NamedTuple):
    """One entry of MODELS."""

    build: Callable[[Shape, int], nn.Module]  # (shape, classes) -> module with unspecified or global-RNG weights
    smallest: int  # least height and width of an image


def build_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Return the model in float32 on the CPU, in training mode, with weights that depend on `seed` alone.

    Raises:
        ValueError: no such model, or it cannot take such images.
        MissingError: the model comes from torchvision, which is not installed.
    """
    fault = model_fault(name, shape)
    if fault is not None:
        raise ValueError(fault)
    if classes < 1:
        raise ValueError(f"a model needs at least 1 class, got {classes}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would also reseed every other device's generator, outside of fork_rng's care.
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        model = MODELS[name].build(shape, classes).float()
    _replace_dropout(model)
    return model.train()


def model_fault(name: str, shape: Shape) -> str | None:
    """Return one sentence that says why the model cannot take images of that shape; None when it can."""
    if name not in MODELS:
        return f"there is no model {name!r}; the models are {', '.join(MODELS)}"
    channels, height, width = shape
    if channels < 1:
        return f"images need at least 1 channel, got {channels}"
    smallest = MODELS[name].smallest
    if min(height, width) < smallest:
        return f"{name} needs images of at least {smallest}x{smallest} pixels, got {height}x{width}"
    return None


def _lenet(shape: Shape, classes: int) -> nn.Module:
    """Return the original's LeNet: 431,080 parameters on (1, 28, 28) with 10 classes.

    As in the original there is no activation between the two linear layers, and ReLU comes after the pooling.
    Different: any channels, size from 16x16 up and number of classes (the original: 1x28x28 and 10); weights from
    torch's present default initialisation (the original's torch 0.3.0 drew from the same uniform ranges).
    """
    channels, height, width = shape
    features = 50 * _after_two_convolutions(height) * _after_two_convolutions(width)
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 500),
        nn.Linear(500, classes),
    )


def _after_two_convolutions(size: int) -> int:
    """Return a side's length after two times 5x5 convolution without padding and 2x2 pooling."""
    return ((size - 4) // 2 - 4) // 2


def _fc(shape: Shape, classes: int) -> nn.Module:
    """Return the original's fully connected net c*h*w-800-500-classes: 1,033,510 parameters on (1, 28, 28), 10 classes.

    Different: the original ends with a sigmoid whose output goes into the cross entropy as if it were logits, which
    bounds each class's probability by e / (e + classes - 1) (0.23 for 10 classes) and the loss from below by 1.46;
    ours gives the logits themselves. Any image size and number of classes (the original: 784 values and 10). Weights
    as for LeNet.
    """
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 800),
        nn.ReLU(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )


def _resnet(name: str) -> Callable[[Shape, int], nn.Module]:
    """Return the builder of torchvision's ResNet for small images: 11,173,962 parameters for resnet18 on CIFAR-10.

    Changed from torchvision: the stem is one 3x3 convolution of stride 1 without max-pooling (theirs, for 224x224: 7x7,
    stride 2, max-pooled), on as many channels as the images have.
    Different from the original Draco (the widespread CIFAR ResNet by kuangliu): global instead of 4x4 average pooling,
    the same on 32x32; He-normal instead of torch's default initialisation of the convolutions.
    """

    def build(shape: Shape, classes: int) -> nn.Module:
        with torch.device("meta"):  # sizes only, so that no weights are drawn twice
            model: nn.Module = getattr(torchvision().models, name)(num_classes=classes)
            model.conv1 = nn.Conv2d(shape[0], 64, 3, stride=1, padding=1, bias=False)
            model.maxpool = nn.Identity()
        return _materialise(model)

    return build


def _vgg(name: str) -> Callable[[Shape, int], nn.Module]:
    """Return the builder of torchvision's VGG for small images: 15,253,578 parameters for vgg16_bn on CIFAR-10.

    Changed from torchvision: the classifier is dropout, 512, dropout, 512, classes as in the original Draco (theirs:
    25088-4096-4096-classes), after average pooling to 1x1, which changes nothing on 32x32 images; the first
    convolution takes as many channels as the images have.
    Different from the original: it has VGG-11, 13 and 16 with BatchNorm only; the dropout masks come from explicit
    generators (`set_dropout`).
    """

    def build(shape: Shape, classes: int) -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = getattr(torchvision().models, name)(init_weights=False)
            features = model.get_submodule("features")
            assert isinstance(features, nn.Sequential)
            features[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
            model.avgpool = nn.AdaptiveAvgPool2d(1)
            model.classifier = nn.Sequential(
                nn.Dropout(0.5),
                nn.Linear(512, 512),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(512, 512),
                nn.ReLU(),
                nn.Linear(512, classes),
            )
        return _materialise(model)

    return build


def _materialise(model: nn.Module) -> nn.Module:
    """Give a model that was built on the meta device its memory and its initial weights, in module order.

    Convolutions: He-normal over the fan-out with zero bias, as torchvision and the original's VGG; BatchNorm: ones and
    zeros; linear layers: torch's default.
    """
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm | nn.Linear):
            module.reset_parameters()
        else:
            assert not [*module.parameters(recurse=False), *module.buffers(recurse=False)], type(module)
    return model


class SeededDropout(nn.Module):
    """Dropout whose masks come from the generators that `set_dropout` gave it, never from global random state.

    Consecutive rows of the batch belong to consecutive segments; each segment's mask comes from its own generator, so
    a partition gets the same masks alone and as a part of a larger batch. Masks are drawn on the CPU whatever the
    device, so they do not depend on it. In evaluation mode it passes its input on, as nn.Dropout does.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.segments: Segments = ()

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, ...) with each value zero with probability p, and scaled by 1 / (1 - p) otherwise."""
        if not self.training or self.p == 0:
            return x
        rows = sum(rows for rows, _ in self.segments)
        if rows != len(x):
            raise RuntimeError(
                f"dropout: the batch has {len(x)} rows but set_dropout announced {rows}; "
                "call set_dropout(model, segments) before every forward in training mode"
            )
        masks = [torch.rand(rows, *x.shape[1:], generator=source) >= self.p for rows, source in self.segments]
        return x * torch.cat(masks).to(x.device, x.dtype).div_(1 - self.p)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the layer."""
        return f"p={self.p}"


def _replace_dropout(model: nn.Module) -> None:
    """Put a SeededDropout in the place of every nn.Dropout below `model`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, SeededDropout(child.p))


def set_dropout(model: nn.Module, segments: Segments) -> None:
    """Tell the model's dropout layers which consecutive rows of the next batch draw from which generator.

    Every layer draws from the same generators, in the order in which the layers run, so one forward uses them up: pass
    fresh ones before each. A batch of several partitions gets, for each of them, bit for bit the masks of that
    partition run alone with the same generator. A model without dropout takes no note. Not for torch.func.vmap over
    partitions, whose calls would share one mask; the count of rows catches this.

    Args:
        model: whose dropout layers are told.
        segments: (rows, generator) for each partition, in the order in which they stand in the batch.
    """
    kept = tuple(segments)
    for module in model.modules():
        if isinstance(module, SeededDropout):
            module.segments = kept


def has_batch_statistics(model: nn.Module) -> bool:
    """Return whether, in training, the samples of a batch influence each other's outputs.

    They do through every BatchNorm layer, except through one that is frozen: in evaluation mode inside of a model in
    training mode, with running statistics to use instead. The answer is the same while the whole model is in
    evaluation mode, since it is about training.
    """
    return any(
        module.training or module.running_mean is None or not model.training
        for module in model.modules()
        if isinstance(module, _BatchNorm)
    )


def flatten(model: nn.Module) -> Tensor:
    """Make all parameters views into one contiguous vector, in the order of `model.parameters()`, and return it, (p,).

    Values do not change, and writing the vector writes the model. `load_state_dict`, `.grad` and optimizers that update
    in place work as before. What gives parameters new memory ends the sharing, so flatten again afterwards:
    `copy.deepcopy(model)` (the copy's parameters are separate tensors), `model.to(device or dtype)`,
    `load_state_dict(..., assign=True)`, and a second `flatten`, after which the first vector is stale.

    Raises:
        ValueError: the parameters are not all float32 on one device.
    """
    parameters = list(model.parameters())
    kinds = {(str(parameter.dtype), str(parameter.device)) for parameter in parameters}
    if len(kinds) != 1 or parameters[0].dtype != torch.float32:
        raise ValueError(f"flatten needs parameters in float32 on one device, got {sorted(kinds)}")
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    for parameter, piece in zip(parameters, torch.split(flat, [each.numel() for each in parameters]), strict=True):
        parameter.data = piece.view(parameter.shape)
    return flat


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, in module order."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [layer for layer in layers if layer.running_mean is not None]


def statistics_size(model: nn.Module) -> int:
    """Return b: a mean and a variance for every channel of every BatchNorm layer."""
    return sum(2 * layer.num_features for layer in batch_norm_layers(model))


def statistics_momenta(model: nn.Module) -> Tensor:
    """Return the weight of a new batch's statistics in the running ones, for each of them, (b,) float32.

    Raises:
        ValueError: a layer averages over all batches (momentum None), so that the weight is no constant.
    """
    layers = batch_norm_layers(model)
    if any(layer.momentum is None for layer in layers):
        raise ValueError("a BatchNorm layer has momentum None, a cumulative average; give it a number")
    values = [torch.full((2 * layer.num_features,), float(layer.momentum or 0.0)) for layer in layers]
    return torch.cat(values) if values else torch.empty(0)


def measure_batch_statistics(model: nn.Module) -> None:
    """Let every forward in training mode leave exactly its batch's statistics in the running buffers.

    It sets the momentum to 1, so the buffers become 0 * old + 1 * batch: exact while the old values are finite; where
    they may not be (a diverged model), overwrite them with `write_statistics` before the forward. The variance is the
    unbiased one, as torch keeps it.
    """
    for layer in batch_norm_layers(model):
        layer.momentum = 1.0


@torch.no_grad()
def read_statistics(model: nn.Module, out: Tensor) -> Tensor:
    """Copy every BatchNorm layer's running mean, then its running variance, in module order into `out` (b,)."""
    for buffer, piece in _pair(model, out):
        piece.copy_(buffer)
    return out


@torch.no_grad()
def write_statistics(model: nn.Module, values: Tensor) -> None:
    """Copy `values` (b,), laid out as by `read_statistics`, into the BatchNorm layers' running statistics."""
    for buffer, piece in _pair(model, values):
        buffer.copy_(piece)


def _pair(model: nn.Module, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return each running buffer with its slice of `vector` (b,)."""
    size = statistics_size(model)
    if vector.shape != (size,):
        raise ValueError(f"BatchNorm statistics of this model are a vector ({size},), got {tuple(vector.shape)}")
    buffers: list[Tensor] = []
    for layer in batch_norm_layers(model):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        buffers += [layer.running_mean, layer.running_var]
    return (
        list(zip(buffers, torch.split(vector, [buffer.numel() for buffer in buffers]), strict=True)) if buffers else []
    )


# The smallest sizes: LeNet's second pooling must leave a pixel; ResNet's last stage must leave 2x2 and VGG's last
# BatchNorm 2x2 pixels, or statistics of a batch of one sample would be undefined.
MODELS: dict[str, Model] = {
    "lenet": Model(_lenet, smallest=16),
    "fc": Model(_fc, smallest=1),
    "resnet18": Model(_resnet("resnet18"), smallest=9),
    "resnet34": Model(_resnet("resnet34"), smallest=9),
    "resnet50": Model(_resnet("resnet50"), smallest=9),
    "resnet101": Model(_resnet("resnet101"), smallest=9),
    "resnet152": Model(_resnet("resnet152"), smallest=9),
    "vgg11": Model(_vgg("vgg11"), smallest=32),
    "vgg11_bn": Model(_vgg("vgg11_bn"), smallest=32),
    "vgg13": Model(_vgg("vgg13"), smallest=32),
    "vgg13_bn": Model(_vgg("vgg13_bn"), smallest=32),
    "vgg16": Model(_vgg("vgg16"), smallest=32),
    "vgg16_bn": Model(_vgg("vgg16_bn"), smallest=32),
    "vgg19": Model(_vgg("vgg19"), smallest=32),
    "vgg19_bn": Model(_vgg("vgg19_bn"), smallest=32),
}
