"""docs/faq.md has every error: each class and exit code, and the fixed beginning of every message.

A message is compared without what differs: `<...>` stands for it in the page, and an entry may end with `…`.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from draco import errors
from draco.job import parse, warnings
from draco.training.checkpoint import CheckpointError

ROOT = Path(__file__).parents[2]
FAQ = (ROOT / "docs/faq.md").read_text()
AWS = (ROOT / "docs/aws.md").read_text()
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DracoError)]
RAISED = {kind.__name__ for kind in [*CLASSES, CheckpointError]}


Names = Mapping[str, ast.expr]


def assigned(tree: ast.AST) -> Names:
    """Return what the names of a module are set to, and what its functions return first."""
    found: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.FunctionDef):
            returned = next((n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value), None)
            found |= {node.name: returned} if returned else {}
    return found


def template(node: ast.expr, names: Names, depth: int = 3) -> str:
    """Return a message with `<>` for all that differs."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(template(part, {}) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, names) + template(right, {})
        case ast.List(elts=[ast.Starred(), *_]):
            return "<>"
        case (
            ast.List(elts=[inner, *_])
            | ast.ListComp(elt=inner)
            | ast.GeneratorExp(elt=inner)
            | ast.Call(func=ast.Attribute(attr="join"), args=[inner])
            | ast.Call(func=ast.Attribute(value=inner, attr="replace"))
        ):
            return template(inner, names)
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)) if depth and name in names:
            return template(names[name], names, depth - 1)
    return "<>"


def plain(text: str) -> str:
    """Return a text with one `<>` for whatever differs, and one space for whatever space there is."""
    return " ".join(re.sub(r"(?:<>)+", "<>", text).split())


def raised() -> Iterator[tuple[str, str]]:
    """Yield (file:line, message) of every `raise` of an error for the user."""
    for path in sorted((ROOT / "draco").rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = assigned(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or not node.exc.args:
                continue
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            text = plain(template(node.exc.args[0], names))
            if name in RAISED and re.search(r"[a-z]{2}", text):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def entries() -> list[str]:
    """Return the messages of the tables of both pages, in the form of `plain`."""
    cells = [line.split(" | ")[0].removeprefix("| ") for line in (FAQ + AWS).splitlines() if line.startswith("| `")]
    spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    return [plain(re.sub(r"<[^>]*>", "<>", span)).removesuffix("…").rstrip() for span in spans]


ENTRIES = [entry for entry in entries() if re.search("[a-z]{2}", entry)]
# Jobs that are wrong in as many ways as the page has entries, by what is overridden in a right one.
WRONG = (
    "scheme={name: repetition, adversaries: 1, uplink: digest} wire.compression=blosc2",
    "scheme={name: repetition, adversaries: 1, uplink: digest} attack=whole_group",
    "shceme=cyclic worker-fail=2", "workers=0", "workers=null", "scheme.adversaries=5", "scheme.name=ciclic",
    "scheme.design=mols", "scheme={name: repetition, adversaries: 1, vote: exact, tolerance: 1e-5}",
    "workers=101 scheme.adversaries=8 batch_size=202", "scheme={name: detox, adversaries: 4}",
    "scheme=uncoded attack=none aggregator={name: krum, f: 4}",
    "scheme=uncoded attack=none aggregator={name: mean, pre: [{name: nnm, size: 2}]}",
    "scheme=uncoded attack=none aggregator={name: median, f: 2, pre: [nnm]} workers=4", "epochs=3", "steps=null",
    "optimizer.nesterov=true", "schedule=step", "attack=none attack.adversaries=1", "scheme.adversaries=0",
    "attack.ranks=[1,1]", "attack.ranks=[11]", "attack=silent attack.until_step=9", "local.momentum=0.5",
    "data.split=by_class", "data={name: mnist, split: dirichlet}", "scheme=cyclic_dft wire=float16 attack=none",
    "model=vgg11", "data.augment=true", "data={name: mnist_5k, source: x}", "data.own=true",
    "batch_size=1", "batch_size=999999", "device=cuda deterministic=false scheme=reactive",
    "device=cuda deterministic=false scheme={name: repetition, adversaries: 1, vote: exact}",
    "workers", "a.b.c=1", "schedule={name: multistep, milestones: [3,2]}", "attack={name: ipm, adversaries: 9}",
    "attack.adversaries=10", "weights.fresh=[a]", "autocast={dtype: float16, loss_scale: 3.0}",
    "stop_early=loss", "stop_early=f1 eval_every=5", "checkpoint_keep={mode: min}",
    "loggers=[{name: csv, options: {a: 1}}]", "loggers=[csv,csv]", "loggers=[tensorbord]", "tensorboard=perhaps",
    "aggregator=nowhere.py:rule", "aggregator=torch:mean", "aggregator=torch:nothing", "aggregator=rule.py",
    "optimizer=torch.optim:LBFGS", "optimizer={name: 'torch.optim:SGD', options: {lrr: 1}}",
    "optimizer={name: 'torch.optim:SGD', lr: 1}",
    "launcher=torchrun transport=mpi", "schedule=torch.optim.lr_scheduler:StepLR",
)  # fmt: skip
# The same for jobs that are right and get a warning.
DOUBTFUL = (
    "ema=0.99", "attack.adversaries=2", "scheme=uncoded attack.adversaries=1", "aggregator=median",
    "schedule={name: multistep, milestones: [100]}", "optimizer=torch.optim:Adafactor",
    "scheme=uncoded aggregator=median attack={name: alie, adversaries: 1}", "scheme={name: detox, adversaries: 2}",
    "scheme=uncoded attack=none local.momentum=0.5 optimizer.momentum=0.5", "stop_early={patience: 9} eval_every=20",
)  # fmt: skip
RIGHT = (
    "{name: small, workers: 9, model: lenet, data: mnist, batch_size: 180, steps: 100, "
    "scheme: {name: cyclic, adversaries: 1}, attack: reverse_gradient}"
)


def test_every_message_has_an_entry() -> None:
    messages = list(raised())
    assert len(messages) > 200
    assert [f"{where}: {said}" for where, said in messages if not any(said.startswith(each) for each in ENTRIES)] == []


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_of_error_has_an_entry_with_its_exit_code(kind: type[errors.DracoError]) -> None:
    assert re.search(rf"^\| {kind.exit_code} \| .*`{kind.__name__}`", FAQ, re.MULTILINE)


def test_every_exit_code_has_an_entry() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", FAQ, re.MULTILINE)}
    without_error = {0, 8, 130, 141}  # done; lost and interrupted runs, which have a state instead; no reader
    assert told == {*(kind.exit_code for kind in CLASSES), *without_error}


@pytest.mark.parametrize("overrides", WRONG)
def test_every_fault_of_a_wrong_job_has_an_entry(overrides: str) -> None:
    with pytest.raises(errors.JobError) as caught:
        parse(RIGHT, "x.yaml", re.split(r" (?=[a-z_.-]+=)", overrides))
    patterns = [".*".join(map(re.escape, entry.split("<>"))) for entry in ENTRIES]
    for fault in caught.value.faults:
        said = fault.removeprefix("x.yaml: ")
        assert any(re.match(pattern, said) for pattern in patterns), said


@pytest.mark.parametrize("overrides", DOUBTFUL)
def test_every_warning_of_a_job_has_an_entry(overrides: str) -> None:
    patterns = [".*".join(map(re.escape, entry.split("<>"))) for entry in ENTRIES]
    said = warnings(parse(RIGHT, "x.yaml", re.split(r" (?=[a-z_.-]+=)", overrides)))
    assert said
    assert [warning for warning in said if not any(re.match(pattern, warning) for pattern in patterns)] == []


@pytest.mark.parametrize("text", ["- a", "a: [", "a: 1\na: 2", "a: &x 1"])
def test_every_fault_of_a_file_that_is_no_job_has_an_entry(text: str) -> None:
    with pytest.raises(errors.JobError) as caught:
        parse(text, "x.yaml")
    starts = [entry.split("<>")[0] for entry in ENTRIES if not entry.startswith("<>")]
    assert any(caught.value.faults[0].removeprefix("x.yaml: ").startswith(start) for start in starts)
