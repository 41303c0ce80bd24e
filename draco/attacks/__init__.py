"""The attacks: what a Byzantine worker sends instead of its honest reply, and who is Byzantine at which step.

`ATTACKS[name](reply, magnitude=..., generator=..., scene=...)`; see `attack`. A new attack is one function with its
declaration, and one line in the table. Importing this package loads no torch.
"""

from collections.abc import Mapping

from draco.attacks.attack import AttackDeclaration
from draco.attacks.code_aware import (
    ADJACENT,
    EQUIVOCATE,
    ORTHOGONAL_TO_PROJECTION,
    RANK_ONE_COLLUSION,
    SPLIT_VOTE,
    WHOLE_GROUP,
)
from draco.attacks.conduct import SILENT, SLOW, WRONG_SIZE
from draco.attacks.omniscient import ALIE, ALIE_OPTIMISED, IPM, IPM_OPTIMISED, MIMIC
from draco.attacks.own_attack import adapt_attack
from draco.attacks.plain import (
    CONSTANT,
    GAUSSIAN,
    INF,
    LABEL_FLIP,
    NAN,
    NONE,
    RANDOM,
    REVERSE_GRADIENT,
    SIGN_FLIP,
    TINY,
    ZERO,
)
from draco.attacks.scene import Scene
from draco.attacks.who import attackers, placed_rows
from draco.declaration import table

__all__ = ["ATTACKS", "AttackDeclaration", "Scene", "attackers", "placed_rows"]

ATTACKS: Mapping[str, AttackDeclaration] = table(
    adapt_attack,
    NONE,
    REVERSE_GRADIENT,
    CONSTANT,
    RANDOM,
    SIGN_FLIP,
    GAUSSIAN,
    ZERO,
    NAN,
    INF,
    TINY,
    LABEL_FLIP,
    ALIE,
    ALIE_OPTIMISED,
    IPM,
    IPM_OPTIMISED,
    MIMIC,
    EQUIVOCATE,
    RANK_ONE_COLLUSION,
    ADJACENT,
    ORTHOGONAL_TO_PROJECTION,
    SPLIT_VOTE,
    WHOLE_GROUP,
    SILENT,
    SLOW,
    WRONG_SIZE,
)
