"""What errors at the tolerance in all products do to a gradient, and to training.

`random`: noise of size tolerance in every product that a transcript has. `worst`: the direction that moves the gradient
most, in the outputs and input gradients of all linear and convolution layers, by power iteration on the first-order map
(each layer's part is scaled to its bound after each iteration). `kinks`: outputs next to zero are moved across, the
nearest first, as far as the bound allows. Errors are relative to the norm of a product, so that the tolerance of a
check, which is relative to a scale of about 3 norms, is multiplied by 3 where it is compared.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.tolerance_cases import Case, build, flat
from draco.data.datasets import dataset_info
from draco.data.info import Request
from draco.data.synthetic import convert_synthetic
from draco.replay.mode import ProductMode
from draco.replay.products import Places

Change = Callable[[Any, int, Tensor], Tensor]  # (operation, output, product) -> what a liar says it is


class Disturbed(ProductMode):
    """Every product that a transcript has is replaced by what a liar says."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def product(self, op: Any, args: Sequence[Any], options: dict[str, Any], found: Places) -> Sequence[Any]:
        """Return the outputs of a product as the liar has them."""
        out = op(*args, **options)
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        return [part if part is None else self.change(op, i, part) for i, part in enumerate(outputs)]


def noise(size: float, seed: int) -> Change:
    """Return the liar that adds noise of a relative size to each product."""
    generator = torch.Generator().manual_seed(seed)

    def change(op: Any, output: int, product: Tensor) -> Tensor:
        drawn = torch.randn(product.shape, generator=generator)
        return product + drawn * float(size * product.norm() / drawn.norm())

    return change


def across(size: float, *, centred: bool) -> Change:
    """Return the liar that moves outputs of convolutions across zero, or across their channel's mean."""

    def change(op: Any, output: int, product: Tensor) -> Tensor:
        if op is not torch.ops.aten.convolution.default:
            return product
        from_kink = product - product.mean((0, 2, 3), keepdim=True) if centred else product
        nearest, order = from_kink.abs().flatten().sort()
        moved = order[nearest.square().mul(1.21).cumsum(0).sqrt() <= size * product.norm()]
        lie = product.clone(memory_format=torch.contiguous_format)
        lie.view(-1)[moved] -= 1.1 * from_kink.flatten()[moved]
        return lie

    return change


def moved(case: Case, change: Change) -> float:
    """Return by how much a liar changes the gradient, relative to its norm."""
    true = case.gradient()
    with Disturbed(change):
        false = case.gradient()
    return float((false - true).norm() / true.norm())


def worst_direction(case: Case, iterations: int = 6) -> float:
    """Return the gradient's relative change per relative error of all layers at once in the worst direction found."""
    layers = [m for m in case.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    nodes: list[Tensor] = []  # inputs of layers, as nodes of their own
    forward: list[Tensor] = []  # errors of outputs
    backward: list[Tensor] = []  # errors of input gradients
    sizes: list[Tensor] = []
    extra: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        node = inputs[0].view_as(inputs[0])
        if not node.requires_grad:
            node = node.clone().requires_grad_()
        error = torch.zeros_like(node, requires_grad=True)
        nodes.append(node)
        backward.append(error)
        extra.append((node * error).sum())
        return node

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        error = torch.zeros_like(output, requires_grad=True)
        forward.append(error)
        sizes.append(output.detach().norm())
        return output + error

    hooks = [h for m in layers for h in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    parameters = list(case.model.parameters())
    loss = case.loss()
    (*by,) = torch.autograd.grad(loss + sum(extra), [*parameters, *nodes], create_graph=True)
    for hook in hooks:
        hook.remove()
    gradient, input_gradients = flat(by[: len(parameters)]), by[len(parameters) :]
    errors = [*forward, *backward]
    bounds = [*sizes, *(g.detach().norm() for g in input_gradients)]
    dual = torch.zeros_like(gradient, requires_grad=True)
    pulled = torch.autograd.grad(gradient, errors, dual, create_graph=True, allow_unused=True)  # linear in `dual`
    used = [(p, b) for p, b in zip(pulled, bounds, strict=True) if p is not None]
    direction = gradient.detach()
    change = 0.0
    for _ in range(iterations):
        at = torch.autograd.grad(gradient, errors, direction, retain_graph=True, allow_unused=True)
        parts = [a for a in at if a is not None]
        steps = [a * (b / a.norm().clamp_min(1e-30)) for a, (_, b) in zip(parts, used, strict=True)]
        pushed = torch.autograd.grad([p for p, _ in used], dual, steps, retain_graph=True)[0]
        change = float(pushed.norm() / gradient.detach().norm())
        direction = pushed / pushed.norm()
    return change + 1  # the weights' own gradients, which are products too


def against_learning(case: Case, size: float) -> Change:
    """Return the liar who knows the model: active units next to zero whose part of the gradient is largest go dead.

    Only units are chosen that add to the gradient's own direction. The weights' gradients are shrunk as far as the
    bound allows, too.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    layers = [m for m in case.model.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda _, i, o: seen.append((i[0].detach(), o))) for m in layers]
    loss = case.loss()
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, [*(m.weight for m in layers), *(output for _, output in seen)])
    lies = []
    for module, (x, output), weight, by_output in zip(
        layers, seen, gradients[: len(layers)], gradients[len(layers) :], strict=True
    ):
        gain = by_output * F.conv2d(x, weight, None, module.stride, module.padding, module.dilation)
        value = torch.where((gain > 0) & (output > 0), output.detach(), torch.inf).flatten()
        nearest, order = value.sort()
        chosen = order[nearest.square().mul(1.21).cumsum(0).sqrt() <= size * output.detach().norm()]
        lie = output.detach().clone()
        lie.view(-1)[chosen] *= -0.1
        lies.append(lie)
    lies.reverse()
    aten = torch.ops.aten

    def change(op: Any, output: int, product: Tensor) -> Tensor:
        if op is aten.convolution.default:
            return lies.pop()
        weights = op is aten.convolution_backward.default and output == 1
        return product * (1 - size) if weights else product

    return change


def losses(attack: Callable[[Case], Change] | None, steps: int, every: int = 10, seed: int = 0) -> Iterator[float]:
    """Train LeNet on the synthetic data with 96 samples a step; yield the mean loss of every `every` steps.

    An attack lies in all products of every step. Without one the run is the attack-free one.
    """
    info = dataset_info("synthetic")
    request = Request("synthetic", info, root=Path(), source=None, scratch=Path())  # it is made, not read
    arrays = convert_synthetic(request)
    images = (torch.from_numpy(arrays["train_images"]).float().div(255).view(-1, 1, 28, 28) - 0.5) / 0.23
    labels = torch.from_numpy(arrays["train_labels"]).long()
    model = build("lenet", 1).model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    sums = 0.0
    for step in range(1, steps + 1):
        drawn = torch.randint(len(labels), (96,), generator=generator)
        case = Case("lenet", model, images[drawn], labels[drawn])
        sums += float(case.loss().detach())
        if attack is None:
            gradient = case.gradient()
        else:
            with Disturbed(attack(case)):
                gradient = case.gradient()
        at = 0
        for parameter in model.parameters():
            parameter.grad = gradient[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        optimizer.step()
        if step % every == 0:
            yield sums / every
            sums = 0.0
