"""docs/torch.md against the program: its names are there, its options and defaults are the guard's."""

import ast
import inspect
import re
from pathlib import Path

import draco.torch
from draco.aggregators import AGGREGATORS
from draco.torch.rules import _by_coordinate

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/torch.md").read_text()


def test_the_names_of_the_page_are_there() -> None:
    named = set(re.findall(r"draco\.torch\.([A-Za-z_]+)", PAGE))
    assert named >= {"Guard", "all_reduce", "robust_hook", "UnrepairedError", "LostRankError"}
    assert [name for name in named if not hasattr(draco.torch, name)] == []
    of_guard = set(re.findall(r"\bguard\.([a-z_]+)", PAGE))
    assert [name for name in of_guard if not hasattr(draco.torch.Guard, name)] == []
    assert set(draco.torch.__all__) <= {*named, "Evidence"}


def test_the_options_of_the_page_are_the_guards() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE, re.MULTILINE))
    parameters = list(inspect.signature(draco.torch.Guard).parameters.values())[1:]
    told = {name: None if default == "none" else float(default) for name, default in table.items()}
    assert told == {each.name: each.default for each in parameters}


def test_the_rules_by_slices_are_those_that_the_page_tells() -> None:
    able = [name for name in AGGREGATORS if _by_coordinate(name, {})]
    assert ", ".join(f"`{name}`" for name in able[:-1]) + f" and `{able[-1]}`" in " ".join(PAGE.split())


def test_the_pages_lines_parse_and_are_those_of_the_example() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert [type(ast.parse(block)).__name__ for block in blocks] == ["Module"] * len(blocks)
    example = (ROOT / "examples/train_gpt_guarded.py").read_text()
    for line in (
        "import draco.torch",
        "guard = draco.torch.Guard(model, redundancy=2)",
        "sampler = guard.sampler(dataset)",
    ):
        assert line.partition("  #")[0] in example
