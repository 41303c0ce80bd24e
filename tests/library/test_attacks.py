"""Attacks: what they send, each against a slow twin or its defining property, and who misbehaves when."""

import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attacked import Rows, error_of, gradients_for, honest, with_wrong
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from draco.aggregators import AGGREGATORS
from draco.attacks import ATTACKS, Scene, attackers, placed_rows
from draco.attacks.code_aware import confusing
from draco.attacks.omniscient import GRID, alie_z
from draco.sampling import generator
from draco.schemes import SCHEMES, DecodeError, Scheme, build
from draco.schemes.declaration import SchemeDeclaration, Sizes
from draco.schemes.projection import draw, finish, project_row

D = 300
KINDS = ["uncoded", "repetition", "cyclic", "cyclic_dft"]  # of replies


def scene_of(
    scheme: Scheme, byzantine: Rows = (0, 1), row: int | None = None, rule: str = "mean", step: int = 3, seed: int = 0
) -> Scene:
    """Return what Byzantine workers know of a step of random gradients that have a mean in common."""
    gradients = gradients_for(scheme, D, seed) + 0.5
    replies = honest(scheme, gradients)

    def served(replies: Tensor) -> Tensor | None:
        try:
            decoded = scheme.decode(replies, seed=1).gradients
        except DecodeError:
            return None
        return decoded[0] if len(decoded) == 1 else AGGREGATORS[rule](decoded, f=len(byzantine))

    row = byzantine[0] if row is None else row
    return Scene(
        step=step,
        rank=row + 1,
        row=row,
        byzantine=byzantine,
        scheme=scheme,
        tolerance=1e-5,
        projections=lambda elements: SCHEMES[scheme.name].project(11, elements),
        shared=lambda: generator(seed, "shared", step),
        gradients=lambda: gradients,
        honest=lambda: replies,
        others=lambda: replies[[i for i in range(scheme.workers) if i not in byzantine]],
        flipped=lambda: replies[row] * 3,
        served=served,
        known={},
    )


def send(name: str, scene: Scene, magnitude: float | None = None, seed: int = 1) -> Tensor:
    if magnitude is None:
        magnitude = ATTACKS[name].magnitude({"z": 1.0}, scene.scheme.workers, len(scene.byzantine))
    reply = scene.honest()[scene.row]
    return ATTACKS[name](reply, magnitude=magnitude, generator=generator(seed, scene.row), scene=scene)


def sent_by_all(name: str, scene: Scene, magnitude: float | None = None) -> Tensor:
    """Return (f, e), what every Byzantine worker of the step sends."""
    return torch.stack([send(name, scene._replace(row=row, rank=row + 1), magnitude) for row in scene.byzantine])


def uncoded(n: int = 11, f: int = 3, rule: str = "mean", seed: int = 0) -> Scene:
    return scene_of(build("uncoded", workers=n, adversaries=f), tuple(range(1, f + 1)), rule=rule, seed=seed)


# --- every attack ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("scheme", KINDS)
def test_an_attack_sends_a_new_tensor_and_depends_only_on_its_arguments(name: str, scheme: str) -> None:
    if ATTACKS[name].fault(SCHEMES[scheme]):
        return  # a job that asks for it is refused
    scene = scene_of(build(scheme, workers=7, adversaries=2))
    before = scene.honest().clone()
    torch.manual_seed(1)
    sent = send(name, scene)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again = send(name, scene._replace(known={}))
    assert sent.numpy().tobytes() == again.numpy().tobytes()  # NaN is not equal to itself
    assert torch.equal(torch.random.get_rng_state(), state)
    reply = scene.honest()[0]
    assert (sent.shape, sent.dtype, sent.device) == (reply.shape, reply.dtype, reply.device)
    sent.zero_()
    assert torch.equal(scene.honest(), before)


class NotToldError(Exception):
    """An attack looked at what only informed workers know."""


@pytest.mark.parametrize("name", ATTACKS)
def test_informed_attacks_use_what_they_are_told_and_the_others_have_no_need_to(name: str) -> None:
    scene = scene_of(build("cyclic", workers=7, adversaries=2), row=1)

    def forbidden(*_: Tensor | int) -> Tensor:
        raise NotToldError

    untold = dict.fromkeys(("projections", "honest", "others", "gradients", "served"), forbidden)
    blind = scene._replace(byzantine=(1,), known={}, **untold)
    reply = scene.honest()[1]

    def sent(scene: Scene) -> bytes | None:
        try:
            return ATTACKS[name](reply, magnitude=1.0, generator=generator(1), scene=scene).numpy().tobytes()
        except NotToldError:
            return None

    assert (sent(scene) != sent(blind)) == ATTACKS[name].informed


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_looks_at_the_numbers_of_its_own_reply_just_where_it_says_so(name: str) -> None:
    scene = scene_of(build("cyclic", workers=7, adversaries=2), row=1)

    def sent(reply: Tensor) -> bytes:
        given = {"magnitude": 1.0, "generator": generator(1), "scene": scene._replace(known={})}
        return ATTACKS[name](reply, **given).numpy().tobytes()

    unseen = torch.full((1,), math.nan).expand(D)
    assert (sent(unseen) != sent(scene.honest()[1])) == ATTACKS[name].own


@pytest.mark.parametrize("name", [name for name in ATTACKS if ATTACKS[name].informed])
def test_colluders_send_the_same_bits_whether_or_not_they_share_their_work(name: str) -> None:
    scheme = build("cyclic", workers=7, adversaries=2)
    together = scene_of(scheme, (2, 5))
    alone = [scene_of(scheme, (2, 5), row=row) for row in (5, 2)]  # in another order
    assert torch.equal(sent_by_all(name, together).flip(0), torch.stack([send(name, each) for each in alone]))


@pytest.mark.parametrize("name", ATTACKS)
def test_what_an_attack_declares_of_its_options_holds(name: str) -> None:
    attack = ATTACKS[name]
    assert (attack.name, attack.function.__name__ in (name, "none")) == (name, True)
    assert attack.text
    assert not attack.text.endswith(".")
    assert {*attack.options} == {*filter(None, [attack.strength]), *(["delay", "delay_s"] if attack.delays else [])}
    for option in attack.options.values():
        assert option.text.endswith(".")
        if option.text.startswith("Whether"):
            assert not option.bounds
            continue
        assert {*option.bounds} == {"gt", "le"}
        assert option.default is None or option.gt < option.default <= option.le
    assert {key for key, option in attack.options.items() if option.argument} == {*filter(None, (attack.strength,))}
    if attack.strength is None:
        assert attack.magnitude({}, 9, 4) == 1.0
        assert attack.usual_strength is None
        return
    default = attack.options[attack.strength].default
    assert (default is None) == (attack.usual_strength is not None)
    usual = attack.usual_strength(9, 4) if attack.usual_strength else default
    assert attack.magnitude({}, 9, 4) == attack.magnitude({attack.strength: None}, 9, 4) == usual
    assert attack.magnitude({attack.strength: 3.0}, 9, 4) == 3.0


@pytest.mark.parametrize("name", ATTACKS)
def test_the_strength_that_an_attack_declares_is_what_it_depends_on(name: str) -> None:
    scene = scene_of(build("cyclic", workers=7, adversaries=2))
    weak, strong = (send(name, scene, magnitude).numpy().tobytes() for magnitude in (1.0, 2.0))
    assert (weak != strong) == (ATTACKS[name].strength is not None)


@pytest.mark.parametrize("name", ATTACKS)
def test_truthful_attacks_and_those_on_the_frame_send_the_honest_reply(name: str) -> None:
    attack = ATTACKS[name]
    scene = scene_of(build("cyclic", workers=7, adversaries=2))
    assert torch.equal(send(name, scene), scene.honest()[0]) == (attack.truthful or attack.sent < 1)
    assert attack.truthful == (name in ("none", "silent", "slow"))  # of half a frame the server makes a refusal
    assert attack.lasting == (attack.sent == 0)
    assert attack.sent_bytes(1000) == {"silent": None, "wrong_size": 500}.get(name, 1000)


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_that_need_an_honest_worker_have_nothing_to_send_without_one(name: str) -> None:
    everybody = scene_of(build("repetition", workers=3, adversaries=1), byzantine=(0, 1, 2))
    if name == "orthogonal_to_projection":
        everybody = everybody._replace(projections=lambda elements: SCHEMES["cyclic"].project(11, elements))
    try:
        possible = bool(torch.isfinite(send(name, everybody)).all()) or name in ("nan", "inf")
    except IndexError:
        possible = False
    assert possible != ATTACKS[name].needs_honest


def test_an_attack_says_against_which_schemes_it_makes_no_sense() -> None:
    def declared(name: str, tolerance: float, project: Callable[[int, int], Tensor] | None) -> SchemeDeclaration:
        return SchemeDeclaration(
            name=name, function=str, text="", sizes=lambda **_: Sizes(1, 1), tolerance=tolerance, project=project
        )

    schemes = [
        declared("plain", 0.0, None), declared("voting", 1e-6, None), declared("coded", 1e-5, SCHEMES["cyclic"].project)
    ]  # fmt: skip
    faults = {name: [attack.fault(scheme) for scheme in schemes] for name, attack in ATTACKS.items()}
    hidden = "orthogonal_to_projection hides from the projections of a decoder; {} does not project"
    assert faults.pop("tiny") == ["tiny hides below the tolerance of a code; plain has none", None, None]
    assert faults.pop("orthogonal_to_projection") == [hidden.format("plain"), hidden.format("voting"), None]
    assert {fault for each in faults.values() for fault in each} == {None}


def test_declarations_load_no_torch() -> None:
    """Commands that read what an attack declares need none of its arithmetic."""
    code = "import sys, draco.attacks as a; a.ATTACKS['alie'].magnitude({}, 9, 4); print('torch._C' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- one by itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["uncoded", "cyclic_dft"])
def test_the_plain_attacks_send_what_they_say(scheme: str) -> None:
    scene = scene_of(build(scheme, workers=7, adversaries=2))
    reply = scene.honest()[0]
    same = ["none", "silent", "slow", "wrong_size"]
    assert all(torch.equal(send(name, scene), reply) for name in same)
    assert torch.equal(send("reverse_gradient", scene), -100 * reply)
    assert torch.equal(send("whole_group", scene, 0.5), -0.5 * reply)
    assert torch.equal(send("sign_flip", scene), -reply)
    assert torch.equal(send("constant", scene, 7), torch.full_like(reply, -7))
    assert torch.equal(send("label_flip", scene), scene.flipped())
    assert not send("zero", scene).any()
    assert torch.isnan(send("nan", scene)).all()
    assert torch.isinf(send("inf", scene)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_random_is_gaussian_and_new_at_every_call(dtype: torch.dtype) -> None:
    source = generator(5)
    reply = torch.randn(100_000, dtype=dtype, generator=generator(3))
    scene = uncoded()
    first, second = (ATTACKS["random"](reply, magnitude=3.0, generator=source, scene=scene) for _ in range(2))
    for sent in (first, second):
        assert abs(sent.mean()) < 0.05
        assert sent.std().item() == pytest.approx(3.0, rel=0.02)
    assert torch.vdot(first, second).abs() / (first.norm() * second.norm()) < 0.02
    assert torch.vdot(first, reply).abs() / (first.norm() * reply.norm()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_gaussian_and_tiny_add_errors_of_the_size_that_they_say(dtype: torch.dtype) -> None:
    reply = 40 * torch.randn(100_000, dtype=dtype, generator=generator(3))
    scene = uncoded()._replace(tolerance=1e-3)
    for name, magnitude, size in (("gaussian", 2.0, 2.0), ("tiny", 0.9, 0.9e-3)):
        error = ATTACKS[name](reply, magnitude=magnitude, generator=generator(5), scene=scene) - reply
        assert float(error.norm() / reply.norm()) == pytest.approx(size, rel=0.02)
        assert torch.vdot(error, reply).abs() / (error.norm() * reply.norm()) < 0.02


# --- the literature's ------------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.integers(1, 30))
def test_alie_takes_the_papers_z(n: int, f: int) -> None:
    """The largest z of a fine grid whose normal probability, by erf, is at most (n - f - s) / (n - f)."""
    s = math.floor(n / 2 + 1) - f
    if not 0 < n - f - s < n - f:
        with pytest.raises(ValueError, match=f"no z for {f} Byzantine workers among {n}"):
            alie_z(n, f)
        return
    grid = np.linspace(-4, 4, 8001)
    below = [z for z in grid if (1 + math.erf(z / math.sqrt(2))) / 2 <= (n - f - s) / (n - f)]
    assert alie_z(n, f) == pytest.approx(below[-1], abs=1.1e-3)


def test_alie_has_the_z_of_the_papers_example() -> None:
    assert alie_z(50, 24) == pytest.approx(1.43, abs=5e-3)


@pytest.mark.parametrize("scheme", KINDS)
def test_alie_and_ipm_are_their_formulas_coordinate_by_coordinate(scheme: str) -> None:
    scene = scene_of(build(scheme, workers=9, adversaries=2), byzantine=(2, 5))
    rows = [scene.honest()[row].tolist() for row in range(9) if row not in (2, 5)]
    little, inner = [], []
    for values in zip(*rows, strict=True):
        parts = [[v.real, v.imag] for v in values] if isinstance(values[0], complex) else [[v] for v in values]
        mean = [math.fsum(part) / 7 for part in zip(*parts, strict=True)]
        std = [
            math.sqrt(math.fsum((v - m) ** 2 for v in part) / 7)
            for part, m in zip(zip(*parts, strict=True), mean, strict=True)
        ]
        little.append(complex(*(m - 1.5 * s for m, s in zip(mean, std, strict=True))))
        inner.append(complex(*(-0.3 * m for m in mean)))
    for name, number, expected in (("alie", 1.5, little), ("ipm", 0.3, inner)):
        sent = sent_by_all(name, scene, number)
        assert torch.equal(sent[0], sent[1])
        torch.testing.assert_close(
            sent[0].to(torch.complex128), torch.tensor(expected, dtype=torch.complex128), atol=1e-6, rtol=1e-5
        )


def test_ipm_and_alie_move_the_mean_as_their_formulas_say() -> None:
    scene = uncoded(n=11, f=3)
    others = [row for row in range(11) if row not in scene.byzantine]
    mean, std = (f(scene.honest()[others].double(), 0) for f in (torch.mean, lambda x, d: x.std(d, correction=0)))
    for name, number, expected in (
        ("ipm", 5.0, (8 - 3 * 5.0) / 11 * mean),  # beyond (n - f) / f the mean points against the gradient
        ("alie", 2.0, mean - 3 / 11 * 2.0 * std),
    ):
        served = scene.served(with_wrong(scene.honest(), scene.byzantine, sent_by_all(name, scene, number)))
        torch.testing.assert_close(served.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["alie_optimised", "ipm_optimised"])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum", "geometric_median"])
def test_the_optimised_attacks_move_the_rule_about_as_far_as_any_factor_would(name: str, rule: str) -> None:
    scene = uncoded(rule=rule)
    truth = scene.served(scene.honest())

    def moved(wrong: Tensor) -> float:
        return float((scene.served(with_wrong(scene.honest(), scene.byzantine, wrong)) - truth).norm())

    plain = name.removesuffix("_optimised")
    found = moved(send(name, scene))
    best = max(moved(send(plain, scene, float(z))) for z in np.geomspace(GRID[0], GRID[-1], 60))
    assert found >= 0.9 * best
    assert found > 0
    paper = {"alie": alie_z(11, 3), "ipm": 0.1}[plain]
    assert found > moved(send(plain, scene, paper))


def test_mimic_copies_the_honest_reply_that_is_furthest_along_their_main_axis() -> None:
    for seed in range(5):
        scene = uncoded(seed=seed)
        others = [row for row in range(11) if row not in scene.byzantine]
        rows = scene.honest()[others].double().numpy()
        axis = np.linalg.svd(rows - rows.mean(0))[2][0]
        furthest = max(others, key=lambda row: abs(scene.honest()[row].double().numpy() @ axis))
        sent = sent_by_all("mimic", scene)
        assert all(torch.equal(each, scene.honest()[furthest]) for each in sent)


# --- those that know the code --------------------------------------------------------------------------------------


def test_no_two_workers_that_equivocate_say_the_same() -> None:
    scene = scene_of(build("repetition", workers=10, adversaries=2), byzantine=(0, 2, 4, 6))
    sent = sent_by_all("equivocate", scene, 2.0)
    for i, row in enumerate(scene.byzantine):
        assert torch.equal(sent[i], scene.honest()[row] * (-2.0 * (i + 1)))


@pytest.mark.parametrize("name", ["rank_one_collusion", "adjacent"])
@pytest.mark.parametrize("scheme", ["cyclic", "cyclic_dft"])
def test_the_errors_of_colluding_workers_are_multiples_of_one_vector(name: str, scheme: str) -> None:
    scene = scene_of(build(scheme, workers=15, adversaries=3), byzantine=(4, 5, 6))
    errors = sent_by_all(name, scene) - scene.honest()[[4, 5, 6]]
    values = torch.linalg.svdvals(errors.to(torch.complex128))
    assert values[1] < 1e-5 * values[0]
    ratios = (errors @ errors[0].conj() / errors[0].norm() ** 2).tolist()
    assert len({round(abs(ratio), 3) for ratio in ratios}) > 1  # each row has a factor of its own
    largest = max(float(error.norm()) for error in errors) / math.sqrt(D)
    assert 0.9 < largest / float(scene.honest().norm() / math.sqrt(15 * D)) < 2.2
    other = sent_by_all(name, scene._replace(shared=lambda: generator(9), known={}))
    assert not torch.equal(other, scene.honest()[[4, 5, 6]] + errors)


@pytest.mark.parametrize(("scheme", "n", "s"), [("cyclic", 15, 3), ("cyclic", 16, 3), ("cyclic_dft", 15, 3)])
def test_adjacent_workers_choose_the_factors_that_look_most_like_their_neighbours(scheme: str, n: int, s: int) -> None:
    """Twin: the parity of the code itself, and the best of random factors."""
    built = build(scheme, workers=n, adversaries=s)
    rows = [built.encode(i, torch.eye(n)[torch.from_numpy(built.assignment[i])]) for i in range(n)]
    matrix = torch.stack(rows).to(torch.complex128).numpy()
    if built.weights is not None:
        matrix = built.weights
    left = np.linalg.svd(matrix)[0]
    parity = left[:, n - 2 * s :].conj().T if scheme != "cyclic" or n % 2 else None
    factors = confusing(built, (4, 5, 6))
    assert np.abs(factors).max() == pytest.approx(1.0)
    if parity is None:
        return
    theirs = parity[:, [7, 8, 9]]

    def angle(factors: np.ndarray) -> float:
        syndrome = parity[:, [4, 5, 6]] @ factors
        rest = syndrome - theirs @ np.linalg.lstsq(theirs, syndrome, rcond=None)[0]
        return float(np.linalg.norm(rest) / np.linalg.norm(syndrome))

    drawn = np.random.default_rng(0).normal(size=(500, 3)) + 1j * np.random.default_rng(1).normal(size=(500, 3))
    assert angle(factors) <= min(angle(other) for other in drawn) + 1e-9


def test_the_projections_that_byzantine_workers_know_are_those_that_the_decoder_takes() -> None:
    row = torch.randn(5000, generator=generator(2))
    secret = draw(11, 5000, row.device)
    sketch = finish(project_row(row, secret)[None], row[None], secret)
    known = SCHEMES["cyclic"].project(11, 5000)
    np.testing.assert_allclose((known @ row.double()).numpy(), sketch.values[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("scheme", "d"), [("cyclic", 40), ("cyclic", 5000), ("cyclic_dft", 300)])
def test_who_knows_the_projections_is_not_seen_by_them_and_a_fresh_seed_protects(scheme: str, d: int) -> None:
    built = build(scheme, workers=7, adversaries=1)
    gradients = gradients_for(built, d)
    sent = honest(built, gradients)
    scene = scene_of(built, byzantine=(3,))._replace(honest=lambda: sent)
    wrong = send("orthogonal_to_projection", scene, 0.5)
    error = (wrong - sent[3]).to(torch.complex128)
    known = SCHEMES[scheme].project(11, d).to(torch.complex128)
    seen = (known @ error).abs() / (known.norm(dim=1) * error.norm())
    assert seen.max() < 1e-6
    assert float(error.norm() / sent[3].norm()) == pytest.approx(0.5, rel=1e-3)
    replies = with_wrong(sent, [3], wrong)

    def decode(seed: int):
        inspection = built.inspect(replies, seed) if built.inspect else None
        for row in range(7 if inspection else 0):
            inspection.add(row)
        return built.decode(replies, seed=seed, inspection=inspection)

    fooled = decode(11)
    assert fooled.suspects == ()
    assert error_of(fooled.gradients, gradients) > 0.01
    for seed in range(12, 32):
        right = decode(seed)
        assert right.suspects == (3,)
        assert error_of(right.gradients, gradients) < 1e-5


def test_workers_that_split_a_vote_agree_to_the_bit_and_win_or_block_where_they_are_enough() -> None:
    scheme = build("repetition", workers=8, adversaries=1, redundancy=4)  # two groups of four
    gradients = gradients_for(scheme, D) + 0.5

    def served(byzantine: Rows):
        scene = scene_of(scheme, byzantine)
        return scheme.decode(with_wrong(scene.honest(), byzantine, sent_by_all("split_vote", scene)))

    assert served((2,)).suspects == (2,)
    with pytest.raises(DecodeError, match=r"group 0.*\[2, 2\]"):
        served((0, 2))
    won = served((0, 2, 4))
    assert won.suspects == () or set(won.suspects) == {6}
    torch.testing.assert_close(won.gradients[0], -100 * gradients[0])
    torch.testing.assert_close(won.gradients[1], gradients[1])


# --- every attack against every decoder, within the promise ----------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*ATTACKS} - {"none", "silent", "slow", "wrong_size"}))
@pytest.mark.parametrize(
    ("scheme", "n", "s"),
    [
        ("repetition", 5, 2), ("repetition", 7, 1), ("cyclic", 5, 1), ("cyclic", 7, 2), ("cyclic", 8, 2),
        ("cyclic_dft", 7, 2),
    ],
)  # fmt: skip
def test_no_attack_of_s_workers_defeats_a_code_wherever_they_sit(name: str, scheme: str, n: int, s: int) -> None:
    if ATTACKS[name].fault(SCHEMES[scheme]):
        return
    options = {"tolerance": 1e-5} if scheme == "cyclic" else {}
    built = build(scheme, workers=n, adversaries=s, **options)
    tolerance = 1e-11 if scheme == "cyclic_dft" else 1e-5
    every = list(itertools.combinations(range(n), s))
    slow = name.endswith("_optimised") and n > 5  # they decode some twenty times for each Byzantine worker
    for byzantine in [(n - 1,), *(every[:: len(every) // 2] if slow else every)]:
        scene = scene_of(built, byzantine)._replace(tolerance=tolerance)
        gradients = scene.gradients()
        replies = with_wrong(scene.honest(), byzantine, sent_by_all(name, scene))
        decoded = built.decode(replies, seed=5)
        lied = {row for row in byzantine if not torch.equal(replies[row], scene.honest()[row])}
        if scheme == "repetition":
            assert torch.equal(decoded.gradients, gradients)
            assert set(decoded.suspects) == lied
        elif name == "tiny":
            assert set(decoded.suspects) <= lied
            assert error_of(decoded.gradients, gradients) <= built.amplification * tolerance + 1e-6
        else:
            assert set(decoded.suspects) == lied
            assert error_of(decoded.gradients, gradients) <= 1e-5


# --- who -------------------------------------------------------------------------------------------------------------


def test_fixed_attackers_are_the_same_at_every_step() -> None:
    first = attackers(7, 1, 9, 3, "fixed")
    assert all(attackers(7, step, 9, 3, "fixed") == first for step in range(2, 20))
    assert len({attackers(seed, 1, 9, 3, "fixed") for seed in range(20)}) > 5


def test_drawn_attackers_are_fresh_repeatable_and_uniform() -> None:
    steps = [attackers(7, step, 9, 2, "drawn") for step in range(1, 2001)]
    assert steps == [attackers(7, step, 9, 2, "drawn") for step in range(1, 2001)]
    counts = Counter(rank for ranks in steps for rank in ranks)
    assert sorted(counts) == list(range(1, 10))
    expected = 2000 * 2 / 9
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values())
    assert len(set(steps)) == 36
    assert steps[:10] != [attackers(8, step, 9, 2, "drawn") for step in range(1, 11)]


def test_rotating_attackers_attack_equally_often() -> None:
    counts = Counter(rank for step in range(1, 10) for rank in attackers(7, step, 9, 2, "rotating"))
    assert counts == dict.fromkeys(range(1, 10), 2)
    assert attackers(7, 1, 9, 2, "rotating") == attackers(7, 1, 9, 2, "fixed") == attackers(7, 10, 9, 2, "rotating")


@pytest.mark.parametrize("who", ["fixed", "drawn", "rotating"])
def test_attackers_are_increasing_ranks_of_workers(who: str) -> None:
    for count in range(6):
        ranks = attackers(1, 4, 5, count, who)
        assert len(set(ranks)) == count
        assert list(ranks) == sorted(ranks)
        assert all(type(rank) is int and 1 <= rank <= 5 for rank in ranks)


def test_impossible_attackers_are_refused() -> None:
    refused: list[Callable[[int], Rows]] = [
        lambda count: attackers(1, 1, 5, count, "fixed"),
        lambda count: placed_rows(1, 5, None, count),
    ]
    for count, function in itertools.product((-1, 6), refused):
        with pytest.raises(ValueError, match=f"{count} attackers among 5 workers; it must be 0 to 5"):
            function(count)
    with pytest.raises(ValueError, match="'all'; it must be fixed, drawn or rotating"):
        attackers(1, 1, 5, 2, "all")


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 30))
def test_placed_workers_are_neighbours_where_there_are_no_groups(n: int, count: int, step: int) -> None:
    rows = placed_rows(step, n, None, min(count, n))
    assert len(set(rows)) == min(count, n)
    assert list(rows) == sorted(rows)
    assert any({(start + i) % n for i in range(len(rows))} == {*rows} for start in range(n))


@given(st.integers(1, 4), st.integers(1, 5), st.data(), st.integers(1, 30))
def test_placed_workers_fill_groups_or_win_as_many_votes_as_any_placement(m: int, r: int, data, step: int) -> None:
    n = m * r + data.draw(st.integers(0, m - 1))
    groups = [row % m for row in range(n)]
    count = data.draw(st.integers(0, min(n, 6)))
    sizes = Counter(groups)

    def won(rows: Rows, share: Callable[[int], int]) -> int:
        inside = Counter(groups[row] for row in rows)
        return sum(inside[group] >= share(size) for group, size in sizes.items())

    filled = placed_rows(step, n, groups, count)
    inside = Counter(groups[row] for row in filled)
    assert len(set(filled)) == count
    assert sum(0 < inside[group] < size for group, size in sizes.items()) <= 1
    if n == m * r:  # groups of one size
        splitting = placed_rows(step, n, groups, count, majorities=True)
        most = max(won(rows, lambda size: size // 2 + 1) for rows in itertools.combinations(range(n), count))
        assert won(splitting, lambda size: size // 2 + 1) == most
        assert won(filled, lambda size: size) == count // r


@pytest.mark.parametrize(("n", "s", "tolerance"), [(45, 5, 2e-6), (44, 5, 1e-5), (45, 4, 1e-5)])
@pytest.mark.parametrize("magnitude", [1.0, 0.1])
def test_many_neighbours_who_know_the_code_are_found_or_the_replies_are_refused(
    n: int, s: int, tolerance: float, magnitude: float
) -> None:
    """Half of 2s neighbours explains what the other half sent nearly as well: no swap of single rows tells."""
    scheme = build("cyclic", workers=n, adversaries=s, tolerance=tolerance)
    gradients = torch.randn(n, 1000, generator=generator(1))
    sent = honest(scheme, gradients, noise=1e-7)
    for start in (3, 27):
        byzantine = tuple(range(start, start + s))
        scene = scene_of(scheme, byzantine)._replace(honest=lambda: sent, shared=lambda: generator(2))
        replies = with_wrong(sent, byzantine, sent_by_all("adjacent", scene, magnitude))
        inspection = scheme.inspect(replies, start)
        for row in range(n):
            inspection.add(row)
        try:
            decoded = scheme.decode(replies, seed=start, inspection=inspection)
        except DecodeError:
            continue
        assert error_of(decoded.gradients, gradients) <= 1e-3, (byzantine, decoded.suspects)
