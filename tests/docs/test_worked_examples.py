"""The numbers of ARCHITECTURE.md, docs/numerics.md and docs/internals-training.md are what the library computes."""

import cmath
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import amplification
from draco.attacks import ATTACKS
from draco.schemes import build
from draco.schemes.cyclic_code import real_code, worst_amplification
from draco.schemes.cyclic_dft import dft_code
from draco.schemes.syndrome import recombination

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
INTERNALS = (ROOT / "docs/internals-training.md").read_text()
NUMERICS = (ROOT / "docs/numerics.md").read_text()


def section(text: str, heading: str) -> str:
    (found,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return found


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of every table of a text, without heads."""
    blocks = re.findall(r"^\|[-:| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]


def numbers(rows: list[list[str]], first: int) -> torch.Tensor:
    return torch.tensor([[float(cell) for cell in row[first:]] for row in rows])


STEP = section(ARCHITECTURE, "One step in numbers")
PARTITIONS, REPLIES = tables(STEP)


def test_the_step_of_three_workers_is_what_the_library_computes() -> None:
    vectors, sent = numbers(PARTITIONS, 1), numbers(REPLIES, 2)[:, :3]
    workers = [int(row[1]) for row in REPLIES]
    assert "workers 1, 2, 3 get rows 2, 0, 1. Worker 3 is Byzantine" in " ".join(STEP.split())
    assert [workers.index(worker) for worker in (1, 2, 3)] == [2, 0, 1]
    scheme = build("cyclic", workers=3, adversaries=1)
    assert scheme.redundancy == 3
    assert np.allclose(scheme.weights, 1 / 3)
    replies = torch.stack([scheme.encode(row, vectors[torch.from_numpy(scheme.assignment[row])]) for row in range(3)])
    byzantine = workers.index(3)
    attack = ATTACKS["reverse_gradient"]
    replies[byzantine] = attack(replies[byzantine], magnitude=100.0, generator=torch.Generator(), scene=None)
    assert torch.allclose(replies, sent, atol=1e-5)
    decoded = scheme.decode(replies, seed=1)
    assert decoded.suspects == (byzantine,)
    mean = decoded.gradients[0]
    assert "gradient (0.2, 0.1) and loss 1.0" in STEP
    assert torch.allclose(mean, torch.tensor([0.2, 0.1, 1.0]))
    assert torch.allclose(mean, vectors.mean(0))
    assert torch.allclose(torch.tensor([1.0, 2.0]) - 0.1 * mean[:2], torch.tensor([0.98, 1.99]))
    assert "(0.98, 1.99)" in STEP


def test_the_parities_of_the_step_point_at_the_byzantine_row() -> None:
    projections = numbers(REPLIES, 2)[:, 3]
    assert torch.allclose(projections, numbers(REPLIES, 2)[:, :3] @ torch.tensor([1.0, -1.0, 1.0]), atol=1e-5)
    parities = real_code(3, 2).parity @ projections.double().numpy()
    by_hand = [sum(float(rho) * cmath.exp(-2j * math.pi * f * row / 3) for row, rho in enumerate(projections)) / 3**0.5
               for f in (1, 2)]  # fmt: skip
    assert np.allclose(parities, by_hand)
    (size,) = re.findall(r"\|S_1\| = \|S_2\| = (\d+\.\d+)", STEP)
    assert np.allclose(np.abs(parities), float(size), atol=0.005)
    assert math.degrees(cmath.phase(parities[1] / parities[0])) == pytest.approx(-120)
    code = real_code(3, 2)
    assert np.allclose(recombination(code.parity, code.clean, (1,)), [0.5, 0, 0.5])
    assert "(0.5, 0, 0.5)" in STEP


def test_the_table_of_absent_workers_is_the_safety_rule() -> None:
    (examples,) = tables(section(INTERNALS, "Why w + a at most s"))
    scheme = build("cyclic", workers=9, adversaries=2)
    for absent, suspects, decodable, taken, _ in examples:
        a, w = int(absent), int(suspects)
        assert (decodable == "yes") == (2 * w + a <= 4)
        assert (taken == "yes") == scheme.tolerates(range(a), range(a, a + w), 1)
    assert len(examples) == 5


def test_the_matrix_of_five_workers_is_the_library_s() -> None:
    (rows, *_) = tables(section(NUMERICS, "The matrix"))
    assert np.allclose(numbers(rows, 1), build("cyclic", workers=5, adversaries=1).weights, atol=5e-4)


def test_the_amplifications_are_the_library_s() -> None:
    text = section(NUMERICS, "Amplification")
    (rows,) = tables(text)
    for n, *cells in rows:
        for s, cell in zip((1, 2, 3, 5), cells, strict=True):
            if cell[0].isdigit():
                scheme = build("cyclic", workers=int(n), adversaries=s)
                assert scheme.redundancy == 2 * s + 1
                assert f"{scheme.amplification:.3g}" == cell
    assert build("cyclic", workers=9, adversaries=1).summary in text
    assert worst_amplification(dft_code(15, 1), 1) == pytest.approx(8.7, abs=0.05)
    assert worst_amplification(dft_code(45, 5), 5) == pytest.approx(150_000, rel=0.1)
    with pytest.raises(ValueError, match="8 adversaries among 101 workers with redundancy 17 amplify float32 rounding"):
        build("cyclic", workers=101, adversaries=8)


@pytest.mark.parametrize(("n", "s", "c"), [(45, 1, 3), (45, 3, 3), (45, 5, 4)])
def test_the_amplifications_of_solon_are_the_library_s(n: int, s: int, c: int) -> None:
    (rows,) = tables(section(NUMERICS, "Shorter replies: `solon`"))
    (told,) = [row[1] for row in rows if row[0] == f"{n}, {s}, {c}"]
    amplification = build("solon", workers=n, adversaries=s, parts=c).amplification
    assert amplification == pytest.approx(float(told), rel=0.03)


@pytest.mark.parametrize(("n", "s"), [(9, 1), (15, 2), (45, 3)])
def test_the_measured_errors_are_within_what_the_page_says(n: int, s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amplification, "TRIALS", 2)
    adjacent, drawn = (amplification.measure(n, s, adjacent=adjacent) for adjacent in (True, False))
    assert "2.5 times" in " ".join(NUMERICS.split())
    assert "1.4e-7 or less" in " ".join(NUMERICS.split())
    assert adjacent.error < 2.5 * adjacent.promised
    assert drawn.error < 1.4e-7
