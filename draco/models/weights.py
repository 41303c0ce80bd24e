"""The initial weights of a model that was built on the meta device, without memory."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def materialise(model: nn.Module) -> nn.Module:
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
