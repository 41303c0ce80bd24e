"""The imports of one source file, read from its syntax tree; nothing is run."""

import ast
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from draco.errors import OwnCodeError

When = Literal["always", "called", "maybe"]  # as the file is imported; as a function is called; if a condition holds
_CATCHES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


class Import(NamedTuple):
    """One `import a.b` or `from ..a import b`."""

    module: str  # a dotted name; empty in `from . import b`
    level: int  # dots before it
    names: tuple[str, ...]  # what `from` takes of it, which may be modules too
    line: int
    when: When


def imports(source: bytes, file: str) -> list[Import]:
    """Return the imports of a Python file, in their order.

    Those under `if TYPE_CHECKING:` and `if __name__ == "__main__":` are left out, as no run reaches them. A call such
    as `import_module("a.b")` counts where the name is written out.

    Raises:
        OwnCodeError: it is no Python; says in which line.
    """
    try:
        tree = ast.parse(source, file)
    except SyntaxError as error:
        raise OwnCodeError(f"{file}, line {error.lineno}: is not Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a zero byte; brackets beyond all measure
        raise OwnCodeError(f"{file}: is not Python: {error}") from error
    return list(_found(tree.body, "always"))


def _found(nodes: Sequence[ast.AST], when: When) -> Iterator[Import]:
    for node in nodes:
        match node:
            case ast.Import(names=names):
                yield from (Import(each.name, 0, (), node.lineno, when) for each in names)
            case ast.ImportFrom(module=module, level=level, names=names):
                yield Import(module or "", level, tuple(each.name for each in names), node.lineno, when)
            case ast.If(test=test, body=body, orelse=orelse):
                if not _is_never(test):
                    yield from _found([test, *body], "maybe")
                yield from _found(orelse, when if _is_never(test) else "maybe")
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=finalbody):
                inner = "maybe" if any(_catches(each.type) for each in handlers) else when
                yield from _found([*body, *orelse], inner)
                yield from _found(handlers, "maybe")
                yield from _found(finalbody, when)
            case ast.With(items=items, body=body):
                suppressed = any(_is_suppress(item.context_expr) for item in items)
                yield from _found([*items, *body], "maybe" if suppressed else when)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _found(list(ast.iter_child_nodes(node)), "called" if when == "always" else when)
            case _:
                if name := _dynamic(node):
                    yield Import(name, 0, (), getattr(node, "lineno", 1), when)
                yield from _found(list(ast.iter_child_nodes(node)), when)


def _is_never(test: ast.expr) -> bool:
    """Say whether a condition does not hold in a run."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")]):
            return True
    return False


def _catches(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return any(_catches(each) for each in kind.elts)
    return kind is None or (isinstance(kind, ast.Name) and kind.id in _CATCHES)


def _is_suppress(context: ast.expr) -> bool:
    if not isinstance(context, ast.Call):
        return False
    name = ast.unparse(context.func).rpartition(".")[2]
    return name == "suppress" and any(_catches(each) for each in context.args)


def _dynamic(node: ast.AST) -> str:
    match node:
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
            called = ast.unparse(function)
            if called in ("import_module", "importlib.import_module", "__import__") and not name.startswith("."):
                return name
    return ""
