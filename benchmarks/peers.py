"""The aggregators of other libraries, to compare with. Only benchmarks and tests import them, and only from here."""

import importlib
import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any

from draco.errors import MissingError

VERSIONS = {"byzfl": "0.0.11", "byzpy": "0.1.4", "hdmedians": "0.14.2"}


@cache
def load(module: str) -> Any:
    """Return a module of a peer, `byzfl.aggregators` for example.

    The code of byzfl/__init__.py is left out: it imports the package's training loop, and with it torchvision and
    seaborn. The aggregators and attacks use nothing of them.

    Raises:
        MissingError: the peer is not installed.
    """
    name = module.split(".")[0]
    found = importlib.util.find_spec(name)
    if found is None:
        wanted = f"{name}=={VERSIONS[name]}"
        raise MissingError(f"{name} is not installed here: `make setup EXTRAS=dev`, or pip install --no-deps {wanted}")
    if name == "byzfl" and name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = list(found.submodule_search_locations or ())
        package.__spec__ = found
        sys.modules[name] = package
    return importlib.import_module(module)
