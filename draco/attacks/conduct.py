"""Attacks on the exchange instead of the numbers: a frame that never comes, comes late, or is cut.

In a simulation nothing is waited for. A worker that sends nothing is absent. One that is slow is absent where its delay
is no shorter than the job lets the server wait for a worker that it can do without (`patience_s`; null:
`reply_timeout_s`), else its reply arrives; with `delay: patience` it always does. Over MPI a late worker also gets no
task until its old reply has come, and one that is often late is waited for less and less (`training/patience.py`).
"""

from __future__ import annotations

from typing import Literal

from draco.attacks.attack import AttackDeclaration
from draco.attacks.plain import none
from draco.declaration import OnlyWith, Option

SILENT = AttackDeclaration(
    name="silent", function=none, text="no answer, from the first such step on", truthful=True, sent=0.0, lasting=True
)

SLOW = AttackDeclaration(
    name="slow",
    function=none,
    text="the honest reply, late",
    options={
        "delay": Option(
            Literal["fixed", "patience"],
            "fixed",
            "Whether an answer is late by delay_s, or by just less than the server is presumed to wait.",
            argument=False,
        ),
        "delay_s": Option(
            float,
            1.0,
            "Seconds by which an answer comes later.",
            gt=0.0,
            le=86400.0,
            argument=False,
            only_with=OnlyWith("delay", ("fixed",)),
        ),
    },
    truthful=True,
    delays=True,
)

WRONG_SIZE = AttackDeclaration(name="wrong_size", function=none, text="half of the honest frame", sent=0.5)
