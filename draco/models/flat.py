"""A model's trained parameters as one flat vector of p numbers; frozen ones, without a gradient, are not among them."""

import torch
from torch import Tensor, nn


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient, in the order of `model.parameters()`."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained_size(model: nn.Module) -> int:
    """Return p, how many numbers are trained."""
    return sum(parameter.numel() for parameter in trained(model))


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state without its frozen parameters, which every process builds by itself."""
    frozen = {name for name, each in model.named_parameters(remove_duplicate=False) if not each.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def flatten(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """Make all trained parameters views into one contiguous vector, in their order, and return it, (p,).

    Values do not change, and writing the vector writes the model. `load_state_dict`, `.grad` and optimizers that update
    in place work as before. What gives parameters new memory ends the sharing, so flatten again after
    `copy.deepcopy(model)`, `model.to(device or dtype)` and `load_state_dict(..., assign=True)`. A second `flatten`
    makes the first vector stale.

    Raises:
        ValueError: none is trained, or those that are are not all of the format `dtype` on one device.
    """
    parameters = trained(model)
    if not parameters:
        raise ValueError("flatten needs a parameter that requires a gradient")
    kinds = {(str(parameter.dtype), str(parameter.device)) for parameter in parameters}
    if len(kinds) != 1 or parameters[0].dtype != dtype:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"flatten needs parameters in {name} on one device, got {sorted(kinds)}")
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    for parameter, piece in zip(parameters, torch.split(flat, [each.numel() for each in parameters]), strict=True):
        parameter.data = piece.view(parameter.shape)
    return flat
