"""The values of a job: one frozen `Job` of sections, each field with its bounds and its description.

The JSON Schema, the messages and the README's table of options are made from these fields. Letters: n workers, s
adversaries, r redundancy, k partitions, B global batch, m gradients after decoding.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ModelName = Literal[
    "lenet", "fc",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn",
]  # fmt: skip
DataName = Literal[
    "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "mnist_5k", "synthetic", "synthetic_rgb"
]  # fmt: skip

# A rank list and the like: YAML gives a list, a frozen value holds a tuple.
_AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Rank = Annotated[int, Field(ge=1)]
Ranks = Annotated[tuple[Rank, ...], _AS_TUPLE, Field(min_length=1)]
Steps = Annotated[tuple[Rank, ...], _AS_TUPLE, Field(min_length=1)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Beta, Beta], _AS_TUPLE]


def _field(default: Any, text: str, *, only: tuple[str, ...] = (), **bounds: Any) -> Any:
    """Return a described field; `only` holds the names of its section to which it applies (empty: to all)."""
    return Field(default, description=text, json_schema_extra={"applies_to": list(only)} if only else None, **bounds)


class Section(BaseModel):
    """What every part of a job is: frozen, strict about types, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def get(self, option: str) -> Any:
        """Return the value of an option, or None where the section's name has no such option."""
        return getattr(self, option, None)

    def given(self) -> dict[str, Any]:
        """Return every option with its value; a declaration's `arguments` picks those that its function takes."""
        return {option: getattr(self, option) for option in type(self).model_fields}


class Data(Section):
    """What the model is trained on."""

    name: DataName = _field(..., "Data set; mnist_5k and the synthetic ones need no download.")
    augment: bool | None = _field(
        None, "Random crops and flips while training; null: what the data set usually takes (crops and flips: CIFAR)."
    )
    root: str = _field("data", "Folder that holds the data sets, one folder each.", min_length=1)
    source: str | None = _field(
        None, "Folder that already holds the original files; null: download where they are missing.", min_length=1
    )
    split: Literal["iid", "dirichlet", "by_class"] = _field(
        "iid",
        "iid: each batch is dealt out to all; else each worker owns as many samples, and the scheme must be "
        "uncoded. dirichlet: class proportions drawn from Dirichlet(alpha); by_class: pieces of all sorted by class.",
    )
    alpha: float | None = _field(
        None, "Concentration of dirichlet, the smaller the fewer classes a worker has; required.", ge=1e-6, le=1e6
    )


class Local(Section):
    """What each worker does to its gradient before it sends it; needs uncoded."""

    momentum: float = _field(
        0.0, "Worker momentum beta: it sends m = beta m + (1 - beta) gradient; 0: the gradient itself.", ge=0.0, lt=1.0
    )
    clip: float | None = _field(
        None, "Norm to which it scales a longer gradient down, before momentum; null: none.", gt=0.0, le=1e30
    )


class Scheme(Section):
    """Which worker computes what, what it sends, and how the server takes the liars out."""

    name: Literal[
        "uncoded", "repetition", "cyclic", "cyclic_dft", "detox", "placement", "approximate", "election", "solon"
    ] = _field(
        ...,
        "uncoded: no redundancy; repetition: groups and a vote; cyclic: real code; cyclic_dft: the paper's code; "
        "detox: votes in small groups, some of which liars may win; placement: several partitions a worker, a vote on "
        "each; approximate: leaves stragglers out; election: a majority of signs, one bit each; solon: cyclic with "
        "shorter replies.",
    )
    design: Literal["mols", "ramanujan", "subset"] = _field(
        "mols",
        "mols: orthogonal Latin squares, n = r l; ramanujan: n = r q or r^2; subset: a partition on every r workers.",
        only=("placement",),
    )
    adversaries: int = _field(
        0, "Adversaries s that the job must bear; repetition and cyclic need 2s+1 workers or more.", ge=0, le=4096
    )
    redundancy: int | None = _field(
        None,
        "Workers r on each partition: repetition from 2s+1 to n, null: 2s+1; detox and placement odd, null: 3. "
        "approximate, election: partitions per worker, on average if code is random; null: 2s+2, and 2s+1.",
        only=("repetition", "detox", "placement", "approximate", "election"),
        ge=1,
        le=4096,
    )
    code: Literal["fractional", "bernoulli", "stochastic_block", "deterministic"] | None = _field(
        None,
        "Who computes what. approximate: fractional (null), which is groups, bernoulli, which is drawn, and "
        "stochastic_block, between the two; election: deterministic (null) and bernoulli.",
        only=("approximate", "election"),
    )
    inside: float | None = _field(
        None,
        "stochastic_block: probability that a worker computes a partition of its own group; null: 0.8.",
        only=("approximate",),
        gt=0.0,
        le=1.0,
    )
    stragglers: int = _field(
        0, "A step is taken once all workers but so many have answered.", only=("approximate",), ge=0, le=4095
    )
    parts: int | None = _field(
        None,
        "Replies have 1/parts of a gradient's elements; a worker computes 2s+parts partitions. null: 2.",
        only=("solon",),
        ge=2,
        le=64,
    )
    vote: Literal["auto", "exact", "tolerance"] = _field(
        "auto",
        "exact: equal bits; tolerance: relative distance; auto: exact where all workers compute alike.",
        only=("repetition", "detox", "placement", "approximate"),
    )
    tolerance: float | None = _field(
        None,
        "Relative distance by which honest replies may differ, beside the wire's rounding; null: 2e-6 for a vote, "
        "1e-5 for cyclic and solon.",
        only=("repetition", "cyclic", "detox", "placement", "approximate", "solon"),
        gt=0.0,
        le=1e-2,
    )
    encoding: Literal["auto", "explicit"] = _field(
        "auto",
        "auto: one backward pass over the weighted losses wherever the model allows it; explicit: combine gradients.",
        only=("cyclic", "approximate"),
    )


_ROBUST = (
    "median", "trimmed_mean", "meamed", "sign_majority", "median_of_means", "geometric_median", "krum", "multi_krum",
    "bulyan", "mda", "smea", "caf", "centered_clipping", "monna", "cge",
)  # fmt: skip
# Rules of whole gradients, which are other rules where each layer is taken by itself.
_BY_ROWS = ("median_of_means", "geometric_median", "krum", "multi_krum", "bulyan", "mda", "smea", "caf", "cge")


class PreAggregator(Section):
    """What is done to the decoded gradients before the aggregator; liars among them stay f, bucketing leaves fewer."""

    name: Literal["nnm", "bucketing", "clipping", "arc"] = _field(
        ...,
        "nnm: nearest-neighbour mixing; bucketing: means of random buckets; clipping: rows cut to length c; arc: the "
        "longest cut to the next.",
    )
    size: int = _field(2, "Gradients in a bucket.", only=("bucketing",), ge=1, le=4096)
    c: float = _field(2.0, "Length to which longer gradients are cut.", only=("clipping",), gt=0.0, le=1e30)


def _written_out(value: Any) -> Any:
    """Write out the shorthand of a list of sections: `[nnm]` is `[{name: nnm}]`."""
    if not isinstance(value, list):
        return value
    return tuple({"name": item} if isinstance(item, str) else item for item in value)


PreAggregators = Annotated[tuple[PreAggregator, ...], BeforeValidator(_written_out), Field(max_length=8)]


class Aggregator(Section):
    """What makes one gradient of the m that decoding leaves: uncoded n, groups n // r, placement k, cyclic 1."""

    name: Literal[
        "mean", "median", "trimmed_mean", "meamed", "sign_majority", "median_of_means", "geometric_median", "krum",
        "multi_krum", "bulyan", "mda", "smea", "caf", "centered_clipping", "monna", "cge",
    ] = _field("mean", "Rule that reduces the decoded gradients to one.")  # fmt: skip
    f: int | None = _field(
        None,
        "Bad gradients that the rule must bear; null: scheme.adversaries for uncoded, the most that liars may win for "
        "detox and placement, 0 after another code.",
        only=_ROBUST,
        ge=0,
        le=4096,
    )
    pre: PreAggregators = _field(
        (), "Pre-aggregators in their order, each by name or with options, such as [nnm, {name: bucketing, size: 2}]."
    )
    per_layer: bool = _field(
        False, "Apply the rule, and what comes before it, to each layer by itself, as the original did.", only=_BY_ROWS
    )
    groups: int | None = _field(
        None, "Groups of gradients, from 2f+1 to m; null: 2f+1.", only=("median_of_means",), ge=1, le=4096
    )
    backend: Literal["gram", "hdmedians"] = _field(
        "gram", "gram: Draco's own, on the Gram matrix; hdmedians: the package.", only=("geometric_median",)
    )
    nu: float = _field(
        0.0, "Smoothing: distances below it count as so much; 0: none.", only=("geometric_median",), ge=0.0, le=1e30
    )
    neighbours: int | None = _field(
        None, "Nearest gradients that a score sums over; null: Krum's own m-f-2.", only=("krum", "multi_krum"), ge=1
    )
    m: int | None = _field(
        None, "How many of the best gradients are averaged; null: all but f.", only=("multi_krum",), ge=1
    )
    tau: float = _field(100.0, "Clipping radius.", only=("centered_clipping",), gt=0.0, le=1e30)
    iterations: int = _field(
        1, "Clipped steps from the last step's result.", only=("centered_clipping",), ge=1, le=1000
    )
    trusted: int = _field(1, "Worker whose gradient is trusted; uncoded only.", only=("monna",), ge=1)


AttackName = Literal[
    "none", "reverse_gradient", "constant", "random", "sign_flip", "gaussian", "zero", "nan", "inf", "tiny",
    "label_flip", "alie", "alie_optimised", "ipm", "ipm_optimised", "mimic", "equivocate", "rank_one_collusion",
    "adjacent", "orthogonal_to_projection", "split_vote", "whole_group", "silent", "slow", "wrong_size",
]  # fmt: skip
_LIES = get_args(AttackName)[1:]

# The default of attack.magnitude of every attack that takes one.
MAGNITUDES = {
    "reverse_gradient": 100.0, "constant": 100.0, "random": 100.0, "gaussian": 1.0, "tiny": 0.9, "equivocate": 1.0,
    "rank_one_collusion": 1.0, "adjacent": 1.0, "orthogonal_to_projection": 1.0, "split_vote": 100.0,
    "whole_group": 100.0,
}  # fmt: skip
_PLACED = ("adjacent", "split_vote", "whole_group")  # attacks that are about where liars sit


class Attack(Section):
    """What simulated adversaries send instead of their reply; it acts after encoding."""

    name: AttackName = _field("none", "What a liar sends.")
    magnitude: float = _field(
        100.0,
        "How large the lie is. 100 for reverse_gradient, split_vote and whole_group (-magnitude times the reply), "
        "constant (-magnitude everywhere), random (normal noise so wide); 1 for equivocate (-magnitude, -2 magnitude, "
        "... times the reply), gaussian, rank_one_collusion, adjacent and orthogonal_to_projection (errors so many "
        "times the reply's size); 0.9 for tiny (an error of so many tolerances).",
        only=tuple(MAGNITUDES),
        gt=0.0,
        le=1e30,
    )
    z: float | None = _field(
        None,
        "mean - z std of the honest replies is sent; null: by the paper's formula.",
        only=("alie",),
        gt=0.0,
        le=1e6,
    )
    epsilon: float = _field(
        0.1, "-epsilon times the mean of the honest replies is sent.", only=("ipm",), gt=0.0, le=1e30
    )
    delay_s: float = _field(1.0, "Seconds by which an answer comes later.", only=("slow",), gt=0.0, le=86400.0)
    adversaries: int | None = _field(
        None, "Simulated liars; null: by fraction or ranks, else scheme.adversaries.", only=_LIES, ge=1, le=4096
    )
    fraction: float | None = _field(
        None, "Simulated liars as a fraction of the workers, rounded down; null: by adversaries.",
        only=_LIES, gt=0.0, le=1.0,
    )  # fmt: skip
    who: Literal["fixed", "drawn", "rotating", "placed"] = _field(
        "fixed",
        "fixed: the same workers at every step; drawn: anew for each step from (seed, step); rotating: by turns; "
        "placed: those whose rows this step are the worst for the scheme, neighbours or whole groups (as if the secret "
        "of the rows were known). Default placed for adjacent, split_vote and whole_group.",
        only=_LIES,
    )
    ranks: Ranks | None = _field(None, "The liars' worker ranks, 1 to n; null: drawn from the seed.", only=_LIES)
    from_step: int = _field(1, "First step at which they lie.", only=_LIES, ge=1)
    until_step: int | None = _field(None, "Last step at which they lie; null: they never stop.", only=_LIES, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, data: Any) -> Any:
        """Fill in the defaults that depend on the name."""
        name = data.get("name") if isinstance(data, dict) else None
        if not isinstance(name, str):
            return data
        usual: dict[str, Any] = {"magnitude": MAGNITUDES[name]} if name in MAGNITUDES else {}
        if name in _PLACED and data.get("ranks") is None:
            usual["who"] = "placed"
        return {**usual, **data}


_ADAMS = ("adam", "adamw")


class Optimizer(Section):
    """torch.optim's optimizer of that name."""

    name: Literal["sgd", "adam", "adamw"] = _field("sgd", "Optimizer.")
    lr: float = _field(0.01, "Initial learning rate; default 0.01 for sgd, 0.001 for adam and adamw.", gt=0.0, le=1e3)
    momentum: float = _field(0.0, "Momentum.", only=("sgd",), ge=0.0, lt=1.0)
    nesterov: bool = _field(False, "Nesterov momentum; needs momentum above 0.", only=("sgd",))
    weight_decay: float = _field(0.0, "Weight decay; default 0, and 0.01 for adamw as in torch.", ge=0.0, le=1e3)
    betas: Betas = _field((0.9, 0.999), "Decay rates of Adam's two moments.", only=_ADAMS)
    eps: float = _field(1e-8, "Adam's epsilon.", only=_ADAMS, gt=0.0, le=1.0)

    @model_validator(mode="before")
    @classmethod
    def _torch_defaults(cls, data: Any) -> Any:
        """Fill in the defaults that depend on the name."""
        usual = {"adam": {"lr": 0.001}, "adamw": {"lr": 0.001, "weight_decay": 0.01}}
        name = data.get("name") if isinstance(data, dict) else None
        return {**usual[name], **data} if name in _ADAMS else data


class Schedule(Section):
    """torch.optim.lr_scheduler's schedule of that name, counted in steps, after an optional linear warm-up."""

    name: Literal["constant", "step", "multistep", "exponential", "cosine"] = _field("constant", "Schedule.")
    step_size_steps: int | None = _field(None, "Steps between two decays; required.", only=("step",), ge=1)
    milestones: Steps | None = _field(None, "Steps at which lr decays, increasing; required.", only=("multistep",))
    gamma: float = _field(
        0.1, "Factor of each decay; exponential decays every step and has no default.",
        only=("step", "multistep", "exponential"), gt=0.0, le=1.0,
    )  # fmt: skip
    eta_min: float = _field(0.0, "Learning rate at the last step.", only=("cosine",), ge=0.0)
    warmup_steps: int = _field(0, "Steps over which lr first rises linearly to optimizer.lr.", ge=0)


class Wire(Section):
    """How a reply travels."""

    dtype: Literal["float32", "float16", "bfloat16"] = _field("float32", "Number format of replies on the wire.")
    compression: Literal["none", "blosc2"] = _field("none", "Lossless compression of replies.")


class OnLoss(Section):
    """What becomes of a run when a node or a process is lost. It changes nothing that is computed."""

    name: Literal["pack", "replace", "fail"] = _field(
        "pack",
        "pack: go on at once, the lost ranks on the nodes that are left; replace: the same, and take a node back that "
        "answers again, which make train brings up meanwhile; fail: end the run, resumably.",
    )
    on_demand: bool = _field(
        False, "A node that the spot market cannot replace may be bought on demand, within max_price (aws).",
        only=("replace",),
    )  # fmt: skip
    per_hour: int = _field(
        20, "Losses within an hour that are borne; one more ends the run.", only=("pack", "replace"), ge=0, le=10_000
    )


class Job(Section):
    """One experiment."""

    name: str = _field(
        ..., "Name of the job: lower-case words and numbers joined by hyphens; runs are named after it.",
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=80,
    )  # fmt: skip
    seed: int = _field(7, "Every source of randomness follows from it.", ge=0, lt=2**63)
    workers: int = _field(..., "Workers n; the server comes on top.", ge=1, le=4096)
    launcher: Literal["mpi", "simulate"] = _field(
        "mpi", "mpi: one process per worker; simulate: all in one process, each partition computed once."
    )
    threads: int = _field(1, "Torch threads of every process.", ge=1, le=1024)
    device: Literal["cpu", "cuda"] = _field("cpu", "Where gradients are computed.")
    model: ModelName = _field(..., "Network; its input shape must be the data's.")
    data: Data = _field(..., "Data set, by name or with options.")
    batch_size: int = _field(
        ..., "Global batch B: samples per step over all partitions, the same for every scheme.", ge=1, le=10**8
    )
    steps: int | None = _field(None, "Steps to train; exactly one of steps and epochs.", ge=1, le=10**9)
    epochs: int | None = _field(None, "Passes over the training data; exactly one of steps and epochs.", ge=1, le=10**6)
    scheme: Scheme = _field(..., "Scheme, by name or with options.")
    local: Local = _field(Local(), "Worker momentum and clipping.")
    aggregator: Aggregator = _field(Aggregator(), "Aggregator, by name or with options.")
    attack: Attack = _field(Attack(), "Simulated attack, by name or with options.")
    optimizer: Optimizer = _field(Optimizer(), "Optimizer, by name or with options.")
    schedule: Schedule = _field(Schedule(), "Learning-rate schedule, by name or with options.")
    checkpoint_every: int = _field(50, "Steps between checkpoints; there is always one at the end; 0: only that.", ge=0)
    eval_every: int | None = _field(
        None, "Steps between evaluations while training; null: only at the end; 0: never.", ge=0
    )
    eval_batch_size: int = _field(1000, "Batch size of an evaluation.", ge=1)
    wire: Wire = _field(Wire(), "Wire format, by dtype or with options.")
    reply_timeout_s: float = _field(
        60.0, "A worker that is needed and has not answered a step by then is lost.", gt=0.0, le=86400.0
    )
    patience_s: float | None = _field(
        None,
        "Wait so long for a worker that the scheme can do without; null: ten times the usual, 2 s at least.",
        gt=0.0,
    )
    start_timeout_s: float = _field(300.0, "Time for all workers to come up.", gt=0.0, le=86400.0)
    on_loss: OnLoss = _field(OnLoss(), "What a loss of nodes or processes leads to, by name or with options.")
    tensorboard: bool = _field(False, "Also write TensorBoard files into the run directory.")


# Sections, each with the field that a bare string stands for: `scheme: cyclic` is `scheme: {name: cyclic}`. One that
# has no names has a number there, for which no string is right.
SECTIONS: dict[str, tuple[type[Section], str]] = {
    "data": (Data, "name"),
    "local": (Local, "momentum"),
    "scheme": (Scheme, "name"),
    "aggregator": (Aggregator, "name"),
    "attack": (Attack, "name"),
    "optimizer": (Optimizer, "name"),
    "schedule": (Schedule, "name"),
    "wire": (Wire, "dtype"),
    "on_loss": (OnLoss, "name"),
}

# Sections of which a field holds a list, by the name of the class.
LISTED: dict[str, type[Section]] = {"PreAggregator": PreAggregator}

# What stands in for a required value that is missing or at fault while the rest is checked.
STAND_INS: dict[str, Any] = {
    "name": "job",
    "workers": 1,
    "model": "lenet",
    "data": {"name": "mnist"},
    "batch_size": 1,
    "scheme": {"name": "uncoded"},
}

# The original's options under which a user of it may look for ours.
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


def options(section: Section, short: str = "name") -> dict[str, Any]:
    """Return the options of a section as plain values, less those that do not apply to its name."""
    name, kind = getattr(section, short), type(section)
    values = section.model_dump(mode="json")
    return {option: value for option, value in values.items() if name in (applies_to(kind, option) or (name,))}


def applies_to(kind: type[BaseModel], option: str) -> tuple[str, ...]:
    """Return the names of its section to which an option applies; empty: to all."""
    extra = kind.model_fields[option].json_schema_extra
    names = extra.get("applies_to", []) if isinstance(extra, dict) else []
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
