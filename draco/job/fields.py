"""The fields of a job: one frozen `Job` of sections, each field with its bounds and its description.

Sections with a name are made from the tables of the library (`unions.kinds`): a new scheme, rule or attack changes
nothing here. Letters: n workers, s adversaries, r redundancy, k partitions, B global batch, m gradients after decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.attacks import ATTACKS
from draco.data.datasets import DATASETS
from draco.declaration import OnlyWith
from draco.job.own_section import OwnSection
from draco.job.plain_options import PlainOptions
from draco.job.unions import AS_TUPLE, NamedSection, Part, Section, described, kinds, union
from draco.metrics import NAME
from draco.models import MODELS
from draco.optimizers import OPTIMIZERS, SCHEDULES
from draco.schemes import SCHEMES

if TYPE_CHECKING:
    ModelName = str
    DataName = str
else:
    ModelName = Literal[tuple(MODELS)]
    DataName = Literal[tuple(DATASETS)]

OLD_WORD = "tensorboard"  # the key that was before `loggers`
MetricName = Annotated[str, Field(pattern=NAME)]
Rank = Annotated[int, Field(ge=1)]
Ranks = Annotated[tuple[Rank, ...], Field(min_length=1), AS_TUPLE]


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


class SchemeSection(NamedSection):
    """Which worker computes what, what it sends, and how the server takes Byzantine replies out."""

    adversaries: int = described(0, "Adversaries s that the job must tolerate.", ge=0, le=4096)


class OwnSchemeSection(OwnSection, SchemeSection):
    """A scheme of your own."""

    table = SCHEMES


class PreAggregatorSection(NamedSection):
    """What is done to the decoded gradients before the aggregator."""


def _written_out(value: Any) -> Any:
    """Write out the shorthand of a list of sections: `[nnm]` is `[{name: nnm}]`."""
    if not isinstance(value, list | tuple):
        return value
    return tuple({"name": item} if isinstance(item, str) else item for item in value)


class OwnPreAggregatorSection(OwnSection, PreAggregatorSection):
    """A pre-aggregator of your own."""

    table = PRE_AGGREGATORS


PRE_AGGREGATOR_KINDS = kinds("pre_aggregator", PRE_AGGREGATORS, PreAggregatorSection)
if TYPE_CHECKING:
    PreAggregators = tuple[PreAggregatorSection, ...]
else:
    PreAggregators = Annotated[
        tuple[union(PRE_AGGREGATOR_KINDS, OwnPreAggregatorSection), ...],
        Field(max_length=8),
        BeforeValidator(_written_out),
    ]


class AggregatorSection(NamedSection):
    """What makes one gradient of the m that decoding leaves."""

    pre: PreAggregators = described(
        (), "Pre-aggregators in their order, each by name or with options, such as [nnm, {name: bucketing, size: 2}]."
    )


_F = described(
    None,
    "Bad gradients that the rule must tolerate; null: as many as the scheme says that adversaries may make bad.",
    ge=0,
    le=4096,
)
_PER_LAYER = described(False, "Apply the rule, and what comes before it, to each layer by itself, as the original did.")


class OwnAggregatorSection(OwnSection, AggregatorSection):
    """An aggregator of your own."""

    table = AGGREGATORS

    f: int | None = _F
    per_layer: bool = _PER_LAYER


def _of_rule(rule: Any) -> Mapping[str, Any]:
    fields: dict[str, Any] = {}
    if rule.robust:
        fields["f"] = int | None, _F
    if rule.whole_rows:
        fields["per_layer"] = bool, _PER_LAYER
    return fields


class NoAttackSection(NamedSection):
    """No attack: every worker sends its honest reply."""

    name: Literal["none"] = described("none", "No attack.")


class AttackSection(NamedSection):
    """What simulated Byzantine workers send instead of their reply; it acts after encoding."""

    adversaries: int | None = described(
        None, "Simulated Byzantine workers; null: by fraction or ranks, else scheme.adversaries.", ge=1, le=4096
    )
    fraction: float | None = described(
        None, "The same as a fraction of the workers, rounded down; null: by adversaries.", gt=0.0, le=1.0
    )
    who: Literal["fixed", "drawn", "rotating", "placed"] = described(
        "fixed",
        "fixed: the same workers at every step; drawn: anew for each step from (seed, step); rotating: by turns; "
        "placed: those whose rows this step are the worst for the scheme, neighbours or whole groups (as if the secret "
        "of the rows were known).",
    )
    ranks: Ranks | None = described(None, "Their ranks, 1 to n; null: drawn from the seed.")
    from_step: int = described(1, "First step at which they attack.", ge=1)
    until_step: int | None = described(None, "Last step at which they attack; null: they never stop.", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _fixed_where_ranks_are_given(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("ranks") is not None:
            return {"who": "fixed", **values}
        return values


class OwnAttackSection(OwnSection, AttackSection):
    """An attack of your own."""

    table = ATTACKS


def _of_attack(attack: Any) -> Mapping[str, Any]:
    if attack.placed is None:
        return {}
    who = AttackSection.model_fields["who"]
    return {"who": (who.annotation, described("placed", who.description or ""))}


class OptimizerSection(NamedSection):
    """torch.optim's optimizer of that name."""

    lr: float
    weight_decay: float


class OwnOptimizerSection(OwnSection):
    """An optimizer of your own, such as torch.optim:RMSprop."""

    table = OPTIMIZERS


class ScheduleSection(NamedSection):
    """torch.optim.lr_scheduler's schedule of that name, counted in steps, after an optional linear warm-up."""

    warmup_steps: int = described(0, "Steps over which lr first rises linearly to optimizer.lr.", ge=0)


class OwnScheduleSection(OwnSection, ScheduleSection):
    """A schedule of your own, such as torch.optim.lr_scheduler:CosineAnnealingWarmRestarts."""

    table = SCHEDULES


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
    Loggers = Annotated[tuple[LoggerSection, ...], Field(max_length=8), BeforeValidator(_written_out)]


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


SCHEME_KINDS = kinds("scheme", SCHEMES, SchemeSection)
AGGREGATOR_KINDS = kinds("aggregator", AGGREGATORS, AggregatorSection, _of_rule)
ATTACK_KINDS: dict[str, type[NamedSection]] = {
    "none": NoAttackSection,
    **kinds("attack", {name: entry for name, entry in ATTACKS.items() if name != "none"}, AttackSection, _of_attack),
}
OPTIMIZER_KINDS = kinds("optimizer", OPTIMIZERS, OptimizerSection)
SCHEDULE_KINDS = kinds("schedule", SCHEDULES, ScheduleSection)

if TYPE_CHECKING:
    AnyScheme = SchemeSection
    AnyAggregator = AggregatorSection
    AnyAttack = AttackSection
    AnyOptimizer = NamedSection
    AnySchedule = ScheduleSection
else:
    AnyScheme = union(SCHEME_KINDS, OwnSchemeSection)
    AnyAggregator = union(AGGREGATOR_KINDS, OwnAggregatorSection, "mean")
    AnyAttack = union(ATTACK_KINDS, OwnAttackSection, "none")
    AnyOptimizer = union(OPTIMIZER_KINDS, OwnOptimizerSection, "sgd")
    AnySchedule = union(SCHEDULE_KINDS, OwnScheduleSection, "constant")


class Job(Section):
    """One experiment."""

    name: str = described(
        ..., "Name of the job: lower-case words and numbers joined by hyphens; runs are named after it.",
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=80,
    )  # fmt: skip
    seed: int = described(7, "Every source of randomness follows from it.", ge=0, lt=2**63)
    workers: int = described(..., "Workers n; the server comes on top.", ge=1, le=4096)
    launcher: Literal["mpi", "simulate"] = described(
        "mpi", "mpi: one process per worker; simulate: all in one process, each partition computed once."
    )
    threads: int = described(1, "Torch threads of every process.", ge=1, le=1024)
    device: Literal["cpu", "cuda"] = described("cpu", "Where gradients are computed.")
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
    checkpoint_every: int = described(
        50, "Steps between checkpoints; there is always one at the end; 0: only that.", ge=0
    )
    checkpoint_keep: CheckpointKeepSection = described(
        CheckpointKeepSection(), "Which checkpoints stay on the disk: all, or by options such as {last: 3, every: 10}."
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
