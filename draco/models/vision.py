"""The only import of torchvision, which works beside a CPU build of torch too.

PyPI's torchvision is compiled against the CUDA build of torch. Beside a CPU build its compiled library cannot be
loaded, so the operators `torchvision::nms` and `torchvision::qnms` are never registered. `import torchvision` then
ends with `RuntimeError: operator torchvision::nms does not exist` while it attaches Python kernels to them. Draco uses
torchvision's models and data sets. None of them calls either operator, so it is enough that their schemas exist.

Nothing is imported before `torchvision()` is called: ten processes start at once, and the import costs each about a
second of processor time.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

from draco.errors import MissingError


@cache
def torchvision() -> Any:
    """Return the imported torchvision package.

    Where it imports as it is, nothing else is done. Where its compiled operators are missing, their schemas are defined
    and the import is repeated. Calling such an operator still fails, with torchvision's own message. Any other failure
    is passed on.

    Raises:
        MissingError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise MissingError(
            "torchvision is not installed here; ResNet and VGG models and the downloaded data sets need it: "
            "run `make setup`, or `pip install torchvision`"
        ) from error
    except RuntimeError as error:
        if not any(name in str(error) for name in _OPERATORS):
            raise
    _define_missing_operators()
    _forget_failed_import()
    return importlib.import_module("torchvision")


def _define_missing_operators() -> None:
    import torch

    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name.removeprefix("torchvision::")):
            torch.library.define(name, _SCHEMA)


def _forget_failed_import() -> None:
    """Drop the submodules that were imported before the failure, so that the next import runs all of them."""
    for module in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[module]


_OPERATORS = ("torchvision::nms", "torchvision::qnms")  # all that torchvision 0.28 asks for at import
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"  # of both, from torchvision's ops/nms.cpp
