"""A model's parameters as one flat vector of p numbers."""

import torch
from torch import Tensor, nn


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
