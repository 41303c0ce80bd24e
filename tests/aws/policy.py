"""The actions that an IAM policy allows, whatever its resources and conditions."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any


def covers(policy: Mapping[str, Any], action: str) -> bool:
    """Return whether a statement of the policy allows an action, `service:Action`, on anything, and none denies it.

    Case does not matter, as for AWS; `*` and `?` in the policy's actions match as AWS has them match. A denial counts
    only where it has no condition.
    """
    if any(matches(pattern, action) for pattern in _actions(policy, "Deny")):
        return False
    return any(matches(pattern, action) for pattern in _actions(policy, "Allow"))


def matches(pattern: str, action: str) -> bool:
    """Return whether an action in a policy stands for this one."""
    return fnmatchcase(action.lower(), pattern.lower().replace("[", "[[]"))


def statements(policy: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a policy's statements; one alone need not be in a list."""
    given = policy["Statement"]
    return given if isinstance(given, list) else [given]


def listed(value: Any) -> list[str]:
    """Return a policy's value as a list: one alone need not be in one."""
    return value if isinstance(value, list) else [value]


def _actions(policy: Mapping[str, Any], effect: str) -> Iterator[str]:
    for statement in statements(policy):
        if statement["Effect"] == effect and (effect == "Allow" or "Condition" not in statement):
            yield from listed(statement["Action"])
