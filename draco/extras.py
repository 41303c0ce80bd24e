"""The optional packages: `pip install draco` brings torch and numpy alone, `draco[train]` what `draco train` needs.

Which extra brings which package is read from the installed package itself, so pyproject.toml is the only list.
"""

import re
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from typing import NamedTuple, NoReturn

from draco.errors import MissingError

_OPTIONAL = re.compile(r"([\w.-]+).*\bextra == ['\"]([\w-]+)['\"]")


class Missing(NamedTuple):
    """An optional package that is not installed, and the extra that brings it."""

    package: str
    extra: str

    def __str__(self) -> str:
        return f"{self.package} is not installed; pip install 'draco[{self.extra}]', or in a checkout: make setup"


def missing(error: ModuleNotFoundError) -> Missing | None:
    """Return the package that was not found; None where no extra brings it, as it is a bug then."""
    package = (error.name or "").partition(".")[0]
    return next((Missing(package, extra) for module, extra in _packages() if module == package), None)


def stand_in(name: str, needs: Missing) -> Callable[..., NoReturn]:
    """Return what stands for a public name whose packages are missing, so that `help(draco)` works without them."""
    package, extra = needs

    def absent(*_: object, **__: object) -> NoReturn:
        raise MissingError(
            f"draco.{name}: {package} is not installed; pip install 'draco[{extra}]', or in a checkout: make setup"
        )

    absent.__name__ = absent.__qualname__ = name
    absent.__doc__ = f"Not here: {needs}."
    return absent


def _packages() -> Iterator[tuple[str, str]]:
    """Yield (module, extra) of every optional package, those of `dev` last; modules are named as their packages are."""
    try:
        found = [match for line in requires("draco") or () if (match := _OPTIONAL.match(line))]
    except PackageNotFoundError:  # a folder of sources on the path
        return
    for match in sorted(found, key=lambda each: each[2] == "dev"):
        yield match[1].lower().partition(".")[0], match[2]
