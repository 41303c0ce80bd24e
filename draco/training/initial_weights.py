"""The initial weights of a model from a file: `weights` in a job.

The file holds a plain state_dict as torch.save writes it, or safetensors. Only tensors are read of it, and no code in
it runs. It is compared with the model in full before anything is taken: names, shapes and number formats.
"""

import fnmatch
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from draco import own
from draco.errors import JobError, MissingError, TrainingError
from draco.job.sections import WeightsSection
from draco.runs import events

_SHOWN = 20  # differences that a message lists
_LONG = 200  # characters of what it quotes
_WIDENED = {(torch.bfloat16, torch.float32), (torch.float16, torch.float32)}  # from, to: nothing is lost


def find(spec: WeightsSection) -> Path | None:
    """Return where the file of a job's initial weights is; None: the job names none.

    It is looked for among the job's own files, and below the folder in which the process was started.

    Raises:
        MissingError: it is in none of them.
    """
    if spec.file is None:
        return None
    places = dict.fromkeys((own.root() / spec.file, Path(spec.file)))
    for path in places:
        if path.is_file():
            return path
    raise MissingError(
        f"weights: {spec.file} is not in {' or '.join(str(path.absolute().parent) for path in places)}; every process "
        "reads it: on a cluster put it into the data folder, or name it in `code`, so that it travels with the job"
    )


def pinned(spec: WeightsSection) -> WeightsSection:
    """Return the same with the SHA-256 of the file, which others then hold theirs against; raises as `digest` does."""
    return spec.model_copy(update={"sha256": digest(spec)}) if spec.file else spec


def digest(spec: WeightsSection) -> str:
    """Return the SHA-256 of the file of a job's initial weights; empty where the job names none.

    Raises:
        MissingError: the file is not there.
    """
    path = find(spec)
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require(spec: WeightsSection) -> None:
    """Make sure that the file of a job's initial weights is there, and is the one that the job wants.

    Raises:
        MissingError: it is not there.
        JobError: it is another.
    """
    got = digest(spec)
    if spec.sha256 not in (None, got):
        raise JobError(
            [f"weights: {spec.file} has the SHA-256 {got}, and must have {spec.sha256}: put that file there"]
        )


def recorded(spec: WeightsSection, run: Path) -> dict[str, str]:
    """Return what the start event of a run says of the file of initial weights.

    Raises:
        TrainingError: it is another than the run began with.
    """
    if spec.file is None:
        return {}
    now = digest(spec)
    starts = [event for event in events.read(run / "events.jsonl") if event.get("event") == "start"]
    before = starts[0].get("weights", now) if starts else now
    if before != now:
        raise TrainingError(
            f"weights: {spec.file} is not the file that the run began with: its SHA-256 was {before}, and is {now}; "
            "put the first one back, or start anew (make: NEW=1)"
        )
    return {"weights": now}


@torch.no_grad()
def load_into(model: nn.Module, spec: WeightsSection) -> None:
    """Give a model the initial weights that a job names; a model of a job that names none is left as it is.

    Numbers in float16 or bfloat16 are widened to a model's float32, which loses nothing. Of names that share their
    numbers in the model the file need have only one.

    Raises:
        MissingError: the file is not there.
        JobError: it is another than it must be, cannot be read, or does not fit the model; lists all differences.
    """
    path = find(spec)
    if path is None:
        return
    require(spec)
    found = {key.removeprefix(spec.prefix): value for key, value in _read(path).items() if key.startswith(spec.prefix)}
    found = {name: value for name, value in found.items() if not _matches(name, spec.fresh)}
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    wanted = {name: value for name, value in state.items() if not _matches(name, spec.fresh)}
    for names in _tied(wanted):
        if known := [name for name in names if name in found]:
            found |= {name: found[known[0]] for name in names if name not in found}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if faults := list(_differences(found, wanted, parameters, spec.unused)):
        more = [f"and {len(faults) - _SHOWN} more differences"] if len(faults) > _SHOWN else []
        remedy = "weights.fresh names what the model has besides, weights.unused what the file has"
        raise JobError(
            [
                f"weights: {spec.file} does not fit the model; {remedy}",
                *(f"  {fault}" for fault in [*faults[:_SHOWN], *more]),
            ]
        )
    for name, value in wanted.items():
        value.copy_(found[name])


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{":
            import safetensors.torch

            return dict(safetensors.torch.load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # what garbage may raise in either library has no bounds
        said = f"{type(error).__name__}: {error}".split("\n")[0][:_LONG]
        raise JobError([f"weights: {path} cannot be read as a state_dict or as safetensors ({said})"]) from error
    if isinstance(found, dict) and {"model", "optimizer", "ledger"} <= found.keys():
        raise JobError([f"weights: {path} is a checkpoint of a run; make export RUN=... makes a file of its model"])
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        inner = {key: type(value).__name__ for key, value in found.items()} if isinstance(found, dict) else {}
        kind = str(inner or type(found).__name__)[:_LONG]
        raise JobError([f"weights: {path} must hold tensors by name and nothing else; it holds {kind}"])
    return dict(found)


def _tied(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of a state_dict that share their numbers, group by group."""
    groups: dict[tuple[int, torch.Size], list[str]] = {}
    for name, value in state.items():
        groups.setdefault((value.data_ptr(), value.shape), []).append(name)
    return [names for (address, _), names in groups.items() if address and len(names) > 1]


def _differences(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], parameters: Collection[str], unused: Sequence[str]
) -> Iterator[str]:
    """Yield every way in which the tensors of a file are not what a model wants."""
    for name in wanted:
        if name not in found:
            yield f"{name}: is not in the file"
    for name, value in found.items():
        if name not in wanted:
            if not _matches(name, unused):
                yield f"{name}: is not in the model"
        elif value.shape != wanted[name].shape:
            yield f"{name}: has the shape {tuple(value.shape)}, the model's has {tuple(wanted[name].shape)}"
        elif value.dtype != wanted[name].dtype and (value.dtype, wanted[name].dtype) not in _WIDENED:
            yield f"{name}: is {value.dtype}, the model's is {wanted[name].dtype}"
        elif name in parameters and not bool(torch.isfinite(value).all()):
            yield f"{name}: holds numbers that are not finite"
    for name, *others in _tied(wanted):
        for other in others:
            if name in found and other in found and not torch.equal(found[name], found[other]):
                yield f"{other}: is another than {name}, with which it is one in the model"


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
