"""The sections of a job that are made of no table: each field with its bounds and its description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from draco.data.datasets import DATASETS
from draco.declaration import OnlyWith
from draco.job.plain_options import PlainOptions
from draco.job.unions import AS_TUPLE, Section, described, written_out
from draco.metrics import NAME

if TYPE_CHECKING:
    DataName = str
else:
    DataName = Literal[tuple(DATASETS)]

MetricName = Annotated[str, Field(pattern=NAME)]
Globs = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AS_TUPLE]


class TaskSection(Section):
    """What is trained, where it is your own: a model, its samples and the loss of each."""

    name: str = described(
        ..., "A file or an importable module, and in it a subclass of draco.Task, such as my_task.py:Digits.",
        pattern=r"^[^:\s][^:]*:[A-Za-z_][A-Za-z0-9_]*$", max_length=4096,
    )  # fmt: skip
    options: PlainOptions = described(PlainOptions(), "The arguments of its constructor, by name.")


class DataSection(Section):
    """What the model is trained on."""

    name: DataName | None = described(
        None, "Data set; mnist_5k and the synthetic ones need no download. Null: the samples are those of task."
    )
    augment: bool | None = described(
        None, "Random crops and flips while training; null: what the data set usually takes (crops and flips: CIFAR)."
    )
    root: str = described("data", "Folder that holds the data sets, one folder each.", min_length=1)
    source: str | None = described(
        None, "Folder that already holds the original files; null: download where they are missing.", min_length=1
    )
    own: bool = described(
        False,
        "The files in data.source are your own, in the format and the sizes of this data set; else their content must "
        "be the original's.",
    )
    split: Literal["iid", "dirichlet", "by_class"] = described(
        "iid",
        "iid: each batch is dealt out to all; else each worker owns as many samples, and the scheme must be "
        "uncoded. dirichlet: class proportions drawn from Dirichlet(alpha); by_class: pieces of all sorted by class.",
    )
    alpha: float | None = described(
        None,
        "Concentration of dirichlet, the smaller the fewer classes a worker has; required with it.",
        ge=1e-6,
        le=1e6,
        only_with=OnlyWith("split", ("dirichlet",)),
    )


class LocalSection(Section):
    """What each worker does to its gradient before it sends it; needs uncoded."""

    momentum: float = described(
        0.0, "Worker momentum beta: it sends m = beta m + (1 - beta) gradient; 0: the gradient itself.", ge=0.0, lt=1.0
    )
    clip: float | None = described(
        None, "Norm to which it scales a longer gradient down, before momentum; null: none.", gt=0.0, le=1e30
    )


class WeightsSection(Section):
    """The file of the initial weights, a plain state_dict or safetensors. Everything in it must fit the model."""

    file: str | None = described(
        None, "The file; null: the model's own initial weights. Every process reads it.", min_length=1
    )
    sha256: str | None = described(
        None, "SHA-256 that the file must have, 64 digits; null: any. The run records it.", min_length=64, max_length=64
    )
    prefix: str = described("", "What stands before each name in the file, such as `module.`, and is cut off.")
    fresh: Globs = described(
        (), "Names of the model, as globs such as [head.*], that keep their own initial weights whatever the file has."
    )
    unused: Globs = described((), "Names in the file, as globs, that the model need not have.")


class AutocastSection(Section):
    """The number format of the forward and backward pass (torch.autocast). Weights and gradients stay float32."""

    dtype: Literal["none", "bfloat16", "float16"] = described(
        "none", "Format of what torch computes in fewer bits, such as products of matrices; none: float32 throughout."
    )
    loss_scale: float = described(
        1024.0,
        "Power of two by which the loss is multiplied before the backward pass and the gradient divided after it, so "
        "that small numbers do not vanish in float16.",
        ge=1.0,
        le=2.0**24,
        only_with=OnlyWith("dtype", ("float16",)),
    )


class WireSection(Section):
    """How a reply travels."""

    dtype: Literal["float32", "float16", "bfloat16"] = described("float32", "Number format of replies on the wire.")
    compression: Literal["none", "blosc2"] = described("none", "Lossless compression of replies.")


_SOME = OnlyWith("name", ("some",))


class CheckpointKeepSection(Section):
    """Which checkpoints stay on the disk. One is removed once a newer one is safe; the last always stays."""

    name: Literal["some", "all"] = described("some", "some: those that the options below name; all: every one.")
    last: int = described(
        3, "The newest; a resume takes the one before where one is damaged.", ge=1, le=10_000, only_with=_SOME
    )
    every: int = described(
        10, "Every so many of the evaluated ones, by number; 0: none for that.", ge=0, le=10_000, only_with=_SOME
    )
    best: bool = described(True, "The one with the best evaluation, by metric, of equals by loss.", only_with=_SOME)
    metric: MetricName | None = described(
        None, "By which the best is chosen; null: top1 where there is one, else loss.", only_with=_SOME
    )
    mode: Literal["min", "max"] | None = described(
        None, "Whether the least or the most of it is best; null: as is known of loss, top1, top5.", only_with=_SOME
    )


class StopEarlySection(Section):
    """When a training ends before its last step: where a metric of the test samples improves no more."""

    metric: MetricName = described("loss", "A metric of the task: loss, top1 and top5 without a task of your own.")
    patience: int = described(
        5, "So many evaluations in a row, one every eval_every steps, without a better one end the run.", ge=1, le=10**6
    )
    min_delta: float = described(0.0, "By how much one must be better than the best so far.", ge=0.0, le=1e30)
    mode: Literal["min", "max"] | None = described(
        None, "Whether the least or the most is best; null: as is known of loss, top1, top5."
    )


BUILT_IN_LOGGERS = ("tensorboard", "csv")
LOGGER = rf"^({'|'.join(BUILT_IN_LOGGERS)}|[^:\s][^:]*:[A-Za-z_][A-Za-z0-9_]*)$"  # the name of one


class LoggerSection(Section):
    """Where steps and evaluations are written besides the run's own records, as they happen."""

    name: str = described(
        ..., "tensorboard, csv, or a file or an importable module, and a class in it, such as my_loggers.py:Wandb.",
        pattern=LOGGER, max_length=4096,
    )  # fmt: skip
    options: PlainOptions = described(
        PlainOptions(), "For your own: what its constructor takes besides run and job, by name."
    )


if TYPE_CHECKING:
    Loggers = tuple[LoggerSection, ...]
else:
    Loggers = Annotated[tuple[LoggerSection, ...], Field(max_length=8), BeforeValidator(written_out)]


class OnLossSection(Section):
    """What becomes of a run when a node or a process is lost. It changes nothing that is computed."""

    name: Literal["pack", "replace", "fail"] = described(
        "pack",
        "pack: go on at once, the lost ranks on the nodes that are left; replace: the same, and take a node back that "
        "answers again, which make train brings up meanwhile; fail: end the run, resumably.",
    )
    on_demand: bool = described(
        False,
        "A node that the spot market cannot replace may be bought on demand, within max_price (aws).",
        only_with=OnlyWith("name", ("replace",)),
    )
    per_hour: int = described(
        20,
        "Losses within an hour that are tolerated; one more ends the run.",
        ge=0,
        le=10_000,
        only_with=OnlyWith("name", ("pack", "replace")),
    )
