"""The language of IAM policies, as much as instance roles and file systems need, and an error for the rest."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

Statement = Mapping[str, Any]


def decide(
    statements: Iterable[Statement],
    action: str,
    resource: str | None,
    context: Mapping[str, str],
    principal: str | None = None,
) -> bool | None:
    """Return what policies say: True allows, False denies expressly, None says nothing.

    Args:
        statements: of one or more policies.
        action: such as ec2:TerminateInstances.
        resource: ARN of what is acted upon; None fits every statement's.
        context: condition keys with their values.
        principal: ARN of who acts, for policies of resources; None: the statements are this one's own.
    """
    allowed = None
    for statement in statements:
        if not _concerns(statement, action, resource, context, principal):
            continue
        if statement["Effect"] == "Deny":
            return False
        allowed = True
    return allowed


def _concerns(
    statement: Statement, action: str, resource: str | None, context: Mapping[str, str], principal: str | None
) -> bool:
    unknown = set(statement) - {"Sid", "Effect", "Action", "Resource", "Principal", "Condition"}
    if unknown:
        raise ValueError(f"policy: {sorted(unknown)} is more than the fake understands")
    if not any(_like(action.lower(), pattern.lower()) for pattern in _list(statement["Action"])):
        return False
    if principal is not None and not _is_principal(statement.get("Principal"), principal):
        return False
    resources = _list(statement.get("Resource", "*"))
    if resource is not None and not any(_like(resource, pattern) for pattern in resources):
        return False
    lowered = {key.lower(): value for key, value in context.items()}
    return all(
        _holds(operator, lowered.get(key.lower()), _list(values))
        for operator, keys in statement.get("Condition", {}).items()
        for key, values in keys.items()
    )


def _is_principal(given: Any, principal: str) -> bool:
    if given == "*":
        return True
    return any(pattern in ("*", principal) for pattern in _list((given or {}).get("AWS", [])))


def _holds(operator: str, value: str | None, wanted: list[str]) -> bool:
    if operator.endswith("IfExists"):
        return value is None or _holds(operator.removesuffix("IfExists"), value, wanted)
    if operator in ("StringEquals", "Bool"):
        return value is not None and value in [str(one) if operator != "Bool" else str(one).lower() for one in wanted]
    if operator in ("StringLike", "ArnLike", "ArnEquals"):
        return value is not None and any(_like(value, pattern) for pattern in wanted)
    if operator in ("StringNotEquals", "StringNotLike", "ArnNotEquals", "ArnNotLike"):
        return value is None or not any(_like(value, pattern) for pattern in wanted)
    raise ValueError(f"policy: the operator {operator} is more than the fake understands")


def _like(value: str, pattern: str) -> bool:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]
