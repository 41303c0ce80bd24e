"""The kinds of cluster, by the word that CLUSTER= takes. A kind's module is imported when it is asked for."""

import importlib
from collections import UserDict
from collections.abc import Mapping
from typing import Any

from draco.cluster.backend import Backend
from draco.errors import MissingError


class _Imported(UserDict[str, Any]):
    """Modules by their names."""

    def __getitem__(self, kind: str) -> Any:
        found = super().__getitem__(kind)
        if not isinstance(found, str):
            return found
        try:
            return importlib.import_module(found)
        except ModuleNotFoundError as error:
            raise MissingError(
                f"CLUSTER={kind} needs {error.name}, which is not here; make setup EXTRAS=cluster"
            ) from error


BACKENDS: Mapping[str, Backend] = _Imported({
    "docker": "draco.cluster.docker",
    "netns": "draco.cluster.netns",
    "ssh": "draco.cluster.ssh",
    "aws": "draco.cluster.aws.backend",
})  # fmt: skip
