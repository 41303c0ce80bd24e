"""What differs between a run's recorded code and the files as they are now."""

import difflib

from draco.code.pack import Pack

_SHOWN = 40  # lines of a diff


def difference(recorded: Pack, now: Pack) -> str:
    """Return a unified diff from the recorded files to those that are there now, with the files first; "" if equal."""
    changed = [
        path for path in sorted({*recorded.files, *now.files}) if recorded.files.get(path) != now.files.get(path)
    ]
    if not changed:
        return ""
    lines = [line for path in changed for line in _diff(path, recorded.files.get(path), now.files.get(path))]
    more = [f"... and {len(lines) - _SHOWN} more lines"] if len(lines) > _SHOWN else []
    return "\n".join([", ".join(changed), *lines[:_SHOWN], *more])


def _diff(path: str, before: bytes | None, after: bytes | None) -> list[str]:
    names = (f"recorded/{path}" if before is not None else "/dev/null", path if after is not None else "/dev/null")
    try:
        texts = [(content or b"").decode() for content in (before, after)]
    except UnicodeDecodeError:
        return [f"--- {names[0]}", f"+++ {names[1]}", "(not text)"]
    return list(difflib.unified_diff(texts[0].splitlines(), texts[1].splitlines(), *names, lineterm=""))
