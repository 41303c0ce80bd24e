"""The optional packages: `pip install draco` brings torch and numpy alone, `draco[train]` what `draco train` needs.

Which extra brings which package is read from the installed package itself, so pyproject.toml is the only list.
"""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires

_OPTIONAL = re.compile(r"([\w.-]+).*\bextra == ['\"]([\w-]+)['\"]")


def missing(error: ModuleNotFoundError) -> str | None:
    """Say which extra brings the package that was not found; None where no extra does, as it is a bug then."""
    package = (error.name or "").partition(".")[0]
    for module, extra in _packages():
        if module == package:
            return f"{package} is not installed; pip install 'draco[{extra}]', or in a checkout: make setup"
    return None


def _packages() -> Iterator[tuple[str, str]]:
    """Yield (module, extra) of every optional package, those of `dev` last; modules are named as their packages are."""
    try:
        found = [match for line in requires("draco") or () if (match := _OPTIONAL.match(line))]
    except PackageNotFoundError:  # a folder of sources on the path
        return
    for match in sorted(found, key=lambda each: each[2] == "dev"):
        yield match[1].lower().partition(".")[0], match[2]
