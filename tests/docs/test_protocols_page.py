"""docs/protocols.md, the example of docs/extend.md and the disputed pair of ARCHITECTURE.md are what the code does."""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draco.errors import DecodeError
from draco.protocols.court import Court, Proof
from draco.protocols.odds import failure_probability
from draco.protocols.reactive import reactive
from draco.protocols.rounds import Protocol, Upload

ROOT = Path(__file__).parents[2]
EXTEND = (ROOT / "docs/extend.md").read_text()
PAGE = (ROOT / "docs/protocols.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def taken(protocol: Protocol, court: Court, liars: Collection[int]) -> tuple[Any, int, int]:
    """Take step 12; liars claim and upload a vector of their own. Return the outcome, rounds, and copies of pair 0."""
    rounds = protocol.step(court, 12, None)
    asks, number, copies = next(rounds), 0, set[int]()
    while True:
        number += 1
        copies |= {ask.worker for ask in asks if ask.partition == 0}
        answers = {}
        for ask in asks:
            vector = b"false" if ask.worker in liars else b"true %d" % ask.partition
            digest = hashlib.sha256(vector).digest()
            answers[ask] = Upload(digest, vector) if ask.send == "vector" else digest
        try:
            asks = rounds.send(answers)
        except StopIteration as end:
            return end.value, number, len(copies)


def test_the_example_finds_that_somebody_lies_and_no_more() -> None:
    (text,) = re.findall(r"A new file `draco/protocols/unanimous.py`:\n\n```python\n(.*?)```", EXTEND, re.DOTALL)
    module: dict[str, Any] = {"__name__": "unanimous"}
    exec(compile(text, "unanimous.py", "exec"), module)
    protocol = module["unanimous"](workers=5, adversaries=2)
    outcome, rounds, copies = taken(protocol, Court(5, 2), ())
    assert [upload.vector for upload in outcome.uploads] == [b"true 0", b"true 1", b"true 2"]
    assert (rounds, copies) == (1, 3)
    with pytest.raises(DecodeError, match=r"unanimous: step 12: partition \d is disputed"):
        taken(protocol, Court(5, 2), (3,))


def test_the_disputed_pair_takes_two_rounds_and_the_next_step_two_copies() -> None:
    protocol = reactive(workers=5, adversaries=2)
    for seed in range(40):  # of which in some worker 3 computes partition 0
        court = Court(5, 2, generator=np.random.default_rng(seed))
        outcome, rounds, copies = taken(protocol, court, (3,))
        assert [upload.vector for upload in outcome.uploads] == [b"true 0", b"true 1", b"true 2"]
        assert (rounds, [*court.expelled]) == (2, [3])
        assert protocol.copies(court.lies) == 2
        if court.expelled[3].partition == 0:
            claimed, true = (hashlib.sha256(text).hexdigest() for text in (b"false", b"true 0"))
            assert court.expelled[3] == Proof(12, 0, claimed, true)
            assert copies == 4  # those of the table
            break
    else:
        raise AssertionError("worker 3 never computed partition 0")
    said = " ".join(ARCHITECTURE.split())
    assert "partition 0 of step 12, with n = 5 and s = 2" in said
    assert "step 13 deals two copies" in said


def test_the_probabilities_of_the_page_are_those_of_the_code() -> None:
    (table,) = re.findall(r"\| n, s \| a = 1 .*\n\|[-:|]+\n((?:\|.*\n)+)", PAGE)
    for line in table.splitlines():
        sizes, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        n, s = map(int, sizes.split(","))
        for a, cell in enumerate(cells, start=1):
            if cell:
                assert failure_probability(n, s, a) == pytest.approx(float(cell), rel=0.05), (n, s, a)
            else:
                assert a > s


def test_what_a_proof_looks_like_is_what_is_printed() -> None:
    from draco.runs.expulsions import Expulsion, sentence

    (line,) = re.findall(r"^    (step 12: worker 3 .*)$", PAGE, re.MULTILINE)
    assert sentence(Expulsion(3, 12, 0, "3fa9" * 16, "81bc" * 16)) == line
