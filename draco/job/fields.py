"""The fields of a job: one frozen `Job` of sections, each field with its bounds and its description.

Letters: n workers, s adversaries, r redundancy, k partitions, B global batch, m gradients after decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from draco.job.named_sections import (
    AGGREGATOR_KINDS,
    ATTACK_KINDS,
    OPTIMIZER_KINDS,
    PRE_AGGREGATOR_KINDS,
    SCHEDULE_KINDS,
    SCHEME_KINDS,
    AnyAggregator,
    AnyAttack,
    AnyOptimizer,
    AnySchedule,
    AnyScheme,
    NoAttackSection,
    OwnAggregatorSection,
    OwnAttackSection,
    OwnOptimizerSection,
    OwnPreAggregatorSection,
    OwnScheduleSection,
    OwnSchemeSection,
)
from draco.job.sections import (
    AutocastSection,
    CheckpointKeepSection,
    DataSection,
    Globs,
    LocalSection,
    Loggers,
    OnLossSection,
    StopEarlySection,
    TaskSection,
    WeightsSection,
    WireSection,
)
from draco.job.unions import AS_TUPLE, Part, Section, described
from draco.models import MODELS

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[tuple(MODELS)]

OLD_WORD = "tensorboard"  # the key that was before `loggers`

LauncherName = Literal["mpi", "simulate", "torchrun", "slurm"]


class Job(Section):
    """One experiment."""

    name: str = described(
        ..., "Name of the job: lower-case words and numbers joined by hyphens; runs are named after it.",
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=80,
    )  # fmt: skip
    seed: int = described(7, "Every source of randomness follows from it.", ge=0, lt=2**63)
    workers: int = described(..., "Workers n; the server comes on top.", ge=1, le=4096)
    launcher: LauncherName = described(
        "mpi",
        "mpi: one process per worker, by mpirun; torchrun, slurm: by these; simulate: all in one process, each "
        "partition computed once.",
    )
    transport: Literal["mpi", "torch"] | None = described(
        None,
        "What processes talk by. mpi: Open MPI; torch: TCP, met by the variables of torch.distributed, without MPI; "
        "null: torch where torchrun or slurm starts them, mpi otherwise.",
    )
    threads: int = described(1, "Torch threads of every process.", ge=1, le=1024)
    device: Literal["cpu", "cuda"] = described(
        "cpu", "Where workers compute gradients; those of a node share its GPUs."
    )
    server_device: Literal["auto", "cpu", "cuda"] = described(
        "auto",
        "Where the server decodes, aggregates and steps. auto: on a GPU where workers compute on GPUs and its machine "
        "has one.",
    )
    deterministic: bool = described(
        True,
        "On GPUs: take operations only that give the same bits each time, and refuse those that have no such form; "
        "false: replies are compared within a tolerance.",
    )
    tf32: bool = described(
        False, "On GPUs: let float32 products and convolutions round their factors to TF32, which is faster."
    )
    task: TaskSection | None = described(
        None, "What is trained, by its path or with options; null: model, on data, by cross entropy."
    )
    model: ModelName | None = described(
        None, "Network; its input shape must be the data's. It is needed where no task is given."
    )
    data: DataSection = described(
        DataSection(), "Data set, by name or with options. It is needed where no task is given."
    )
    batch_size: int = described(
        ..., "Global batch B: samples per step over all partitions, the same for every scheme.", ge=1, le=10**8
    )
    steps: int | None = described(None, "Steps to train; exactly one of steps and epochs.", ge=1, le=10**9)
    epochs: int | None = described(
        None, "Passes over the training data; exactly one of steps and epochs.", ge=1, le=10**6
    )
    scheme: AnyScheme = described(..., "Scheme, by name or with options.")
    local: LocalSection = described(LocalSection(), "Worker momentum and clipping.")
    aggregator: AnyAggregator = described(AGGREGATOR_KINDS["mean"](name="mean"), "Aggregator, by name or with options.")
    attack: AnyAttack = described(NoAttackSection(), "Simulated attack, by name or with options.")
    optimizer: AnyOptimizer = described(OPTIMIZER_KINDS["sgd"](name="sgd"), "Optimizer, by name or with options.")
    schedule: AnySchedule = described(
        SCHEDULE_KINDS["constant"](name="constant"), "Learning-rate schedule, by name or with options."
    )
    clip_norm: float | None = described(
        None, "Euclidean norm to which the aggregated gradient is scaled down before the optimizer; null: none.",
        gt=0.0, le=1e30,
    )  # fmt: skip
    ema: float = described(
        0.0,
        "Decay of a moving average of the weights, which is evaluated and exported in their place; 0: none.",
        ge=0.0,
        lt=1.0,
    )
    weights: WeightsSection = described(WeightsSection(), "Initial weights, by file or with options.")
    micro_batch: int | None = described(
        None, "Samples that a worker computes at a time, so that a partition need not fit in memory; null: all.", ge=1
    )
    autocast: AutocastSection = described(
        AutocastSection(), "Number format of the forward and backward pass, by dtype or with options."
    )
    precision: Literal["float32", "float64_rounded"] = described(
        "float32",
        "float64_rounded: step vectors are computed in float64 and rounded to float32, so that workers on unlike CPUs "
        "send equal bits but for rare ties; takes about twice the time.",
    )
    recompute: Globs = described(
        (), "Modules, as globs such as [blocks.*], whose activations are not kept but computed again when needed."
    )
    checkpoint_every: int = described(
        50, "Steps between checkpoints; there is always one at the end; 0: only that.", ge=0
    )
    checkpoint_keep: CheckpointKeepSection = described(
        CheckpointKeepSection(), "Which checkpoints stay on the disk: all, or by options such as {last: 3, every: 10}."
    )
    chain: Literal["none", "model", "partitions"] = described(
        "model",
        "What of each step is digested into chain.jsonl, by which draco verify checks a run. model: the model; "
        "partitions: also the vectors of partitions and their aggregate, where the server has them; none: nothing.",
    )
    eval_every: int | None = described(
        None, "Steps between evaluations while training; null: only at the end; 0: never.", ge=0
    )
    stop_early: StopEarlySection | None = described(
        None, "When the training ends before its last step, by a metric or with options; null: never."
    )
    eval_batch_size: int = described(1000, "Batch size of an evaluation.", ge=1)
    wire: WireSection = described(WireSection(), "Wire format, by dtype or with options.")
    reply_timeout_s: float = described(
        60.0, "A worker that is needed and has not answered a step by then is lost.", gt=0.0, le=86400.0
    )
    patience_s: float | None = described(
        None,
        "Wait no longer than this for a worker that the scheme can do without, and less for one that is often late; "
        "null: by the pace of the others.",
        gt=0.0,
    )
    start_timeout_s: float = described(300.0, "Time for all workers to come up.", gt=0.0, le=86400.0)
    on_loss: OnLossSection = described(
        OnLossSection(), "What a loss of nodes or processes leads to, by name or with options."
    )
    code: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AS_TUPLE] = described(
        (),
        "More files and folders of your own code, besides those found by its imports; [.] takes the working directory. "
        "They are recorded in the run, which loads them from there.",
    )
    loggers: Loggers = described(
        (), "Where steps and evaluations are written besides, each by name or with options: tensorboard, csv, your own."
    )

    @model_validator(mode="before")
    @classmethod
    def _in_new_words(cls, values: Any) -> Any:
        return renewed(values) if isinstance(values, dict) else values


def renewed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a job in the words of today: `tensorboard: true` is the old word for a logger.

    What is neither true nor false stays.
    """
    old = values.get(OLD_WORD)
    if not isinstance(old, bool):
        return dict(values)
    found = {key: value for key, value in values.items() if key != OLD_WORD}
    loggers = found.get("loggers", ())
    if old and isinstance(loggers, list | tuple) and not any(_name(each) == OLD_WORD for each in loggers):
        found["loggers"] = [OLD_WORD, *loggers]
    return found


def _name(logger: Any) -> Any:
    return logger.get("name") if isinstance(logger, Mapping) else logger


# The parts of a job that are sections. The short form of `local` is a number, so a string is at fault there.
SECTIONS: dict[str, Part] = {
    "task": Part("name", {"": TaskSection}),
    "data": Part("name", {"": DataSection}),
    "local": Part("momentum", {"": LocalSection}),
    "scheme": Part("name", SCHEME_KINDS, own=OwnSchemeSection),
    "aggregator": Part("name", AGGREGATOR_KINDS, "mean", OwnAggregatorSection),
    "attack": Part("name", ATTACK_KINDS, "none", OwnAttackSection),
    "optimizer": Part("name", OPTIMIZER_KINDS, "sgd", OwnOptimizerSection),
    "schedule": Part("name", SCHEDULE_KINDS, "constant", OwnScheduleSection),
    "weights": Part("file", {"": WeightsSection}),
    "autocast": Part("dtype", {"": AutocastSection}),
    "checkpoint_keep": Part("name", {"": CheckpointKeepSection}),
    "stop_early": Part("metric", {"": StopEarlySection}),
    "wire": Part("dtype", {"": WireSection}),
    "on_loss": Part("name", {"": OnLossSection}),
}
PRE_AGGREGATOR = Part("name", PRE_AGGREGATOR_KINDS, own=OwnPreAggregatorSection)  # each item of aggregator.pre

# What stands in for a required value that is missing or at fault while the rest is checked.
STAND_INS: dict[str, Any] = {
    "name": "job",
    "workers": 1,
    "task": {"name": "task.py:Task"},
    "model": "lenet",
    "data": {"name": "mnist"},
    "batch_size": 1,
    "scheme": {"name": "uncoded"},
}

# Options of the original Draco, by which its users may look for ours.
ORIGINAL_OPTIONS = {
    "adversarial": "attack.magnitude",
    "approach": "scheme.name",
    "compress_grad": "wire.compression",
    "dataset": "data.name",
    "enable_gpu": "device",
    "err_mode": "attack.name",
    "eval_freq": "checkpoint_every",
    "group_size": "scheme.redundancy",
    "max_steps": "steps",
    "mode": "aggregator.name",
    "n": "workers",
    "network": "model",
    "no_cuda": "device",
    "worker_fail": "scheme.adversaries",
}
