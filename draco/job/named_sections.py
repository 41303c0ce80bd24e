"""The sections of a job whose name is an entry of a table of the library, or the path of a user's own code.

They are made from the tables (`unions.kinds`): a new scheme, rule or attack changes nothing here. Letters: s
adversaries, m gradients after decoding, f bad ones among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.attacks import ATTACKS
from draco.job.own_section import OwnSection
from draco.job.unions import AS_TUPLE, NamedSection, described, kinds, union, written_out
from draco.optimizers import OPTIMIZERS, SCHEDULES
from draco.schemes import SCHEMES

Rank = Annotated[int, Field(ge=1)]
Ranks = Annotated[tuple[Rank, ...], Field(min_length=1), AS_TUPLE]


class SchemeSection(NamedSection):
    """Which worker computes what, what it sends, and how the server takes Byzantine replies out."""

    adversaries: int = described(0, "Adversaries s that the job must tolerate.", ge=0, le=4096)


class OwnSchemeSection(OwnSection, SchemeSection):
    """A scheme of your own."""

    table = SCHEMES


class PreAggregatorSection(NamedSection):
    """What is done to the decoded gradients before the aggregator."""


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
        BeforeValidator(written_out),
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
