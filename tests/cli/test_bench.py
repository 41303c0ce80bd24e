"""The benchmark runs, and its table holds every figure that has a target. Small sizes: the times mean nothing here."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console
from torch import Tensor

import benchmarks as bench
from benchmarks import contests, memory, peers, protocol_steps, rules, simulated, start
from benchmarks import gpu as gpu_section
from benchmarks.contests import CONTESTS, hopeless
from benchmarks.timing import Row, alternate
from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.cli.main import main
from draco.errors import MissingError


@pytest.mark.long
def test_the_benchmark_prints_every_target_and_writes_its_figures(tmp_path: Path, capsys) -> None:
    bench.main(tmp_path / "bench.json", quick=True, only=set(bench.SECTIONS) - {"aggregators"})
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    targets = {(row["what"], row["target"]) for row in rows if row["target"]}
    assert {
        ("repetition vote, r=3", 0.9),
        ("cyclic decode, s=2, no error", 0.8),
        ("cyclic decode, s=2, 2 errors", 1.5),
        ("explicit encode", 0.5),
        ("geometric median", 7.0),
        ("krum", 6.0),
        ("training step, repetition", 1.1),
        ("training step, cyclic", 1.1),
        ("receive over MPI", 1.3),
        ("model out, replies in", 3.0),
        ("step, reactive, nobody lies", 2.2),
        ("step, reactive, liars expelled", 1.15),
        ("bytes received, reactive, nobody lies", 0.95),
        ("steps with a slow worker", 1.3),
        ("cyclic decode at constant n*d, 0 errors", 1.3),
        ("cyclic decode at constant n*d, 2 errors", 1.3),
        ("median of 1 pairs: trimmed_mean after nnm / alie z 1.5", 0.5),
    } <= targets
    waits = {row["what"]: row["ratio"] for row in rows if row["against"] == "import torch"}
    assert waits.keys() == start.GOALS.keys() - {"whole quickstart"}
    assert all(ratio > 0 for ratio in waits.values())
    assert ("plain PyTorch step, all cores", None) in {(row["what"], row["target"]) for row in rows}
    assert {"hdmedians geometric median", "the paper's complex decode, 2 errors"} <= {row["what"] for row in rows}
    assert {"bytes of float16", "pack and unpack float32 + blosc2"} <= {row["what"] for row in rows}
    assert all(row["seconds"] > 0 or row["what"].startswith("of which") for row in rows)
    beside = [row for row in rows if "trimmed_mean after nnm / alie z 1.5" in row["what"]]  # one pair, slowest, median
    assert [row["target"] for row in beside] == [1.0, 1.0, 0.5]
    assert all(row["against"].endswith(" ms") for row in beside)  # byzfl's loop goes through
    said = capsys.readouterr()
    assert "Ratios of medians" in said.out
    assert "step, reactive, nobody lies (lenet n=9 B=18): " in said.err  # as it came


def test_the_aggregators_stand_beside_the_peers(tmp_path: Path, capsys) -> None:
    bench.main(tmp_path / "bench.json", quick=True, only=["aggregators"])
    assert "Aggregators, n=7 f=1 d=3,000, cpu" in capsys.readouterr().out
    figures = json.loads((tmp_path / "bench.json").read_text())["aggregators"]
    targets = {figure["what"]: figure["target"] for figure in figures if figure["ratio"]}
    assert {name for name, target in targets.items() if target == 5} >= {"median", "trimmed_mean", "meamed", "nnm"}
    assert all(figure["seconds"] > 0 and (figure["memory"] is not None) == memory.RESET.exists() for figure in figures)
    assert all(figure["reasons"] == {} for figure in figures)  # every peer's call goes through
    assert {peer for figure in figures for peer in figure["peers"]} == set(peers.VERSIONS)


def test_protocols_that_this_version_lacks_are_left_out() -> None:
    plain = protocol_steps.VARIANTS["plain mean"]
    assert protocol_steps.known(plain)
    assert protocol_steps.known(plain._replace(scheme="{name: verified, adversaries: 1, verifiers: 1}"))
    assert not protocol_steps.known(plain._replace(scheme="{name: verified, adversaries: 1, deposits: 1}"))
    assert not protocol_steps.known(plain._replace(scheme="{name: absent, adversaries: 1}"))


def test_gradients_of_protocols_are_counted_over_the_steps_that_would_follow(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "synthetic").symlink_to(data_root / "synthetic")
    rows = {row.what: row.ratio for row in protocol_steps._counted(tmp_path, "fc", "synthetic", 3, 2)}
    assert rows["gradients, reactive, nobody lies"] == 3.0
    assert 1.0 < rows["gradients, reactive, 2 always lie"] <= 1.05


def test_the_slowest_and_the_median_pair_are_named_and_who_fails_does_not_count() -> None:
    pairs = [simulated.Pair("mean", attack, ours, 1.0) for attack, ours in zip("abc", (0.2, 1.5, 0.4), strict=True)]
    failed = simulated.Pair("mean", "d", 3.0, None, "ValueError: no")
    slowest, middle = simulated.summary([*pairs, failed])
    assert (slowest.what, slowest.ratio, slowest.verdict) == ("slowest of 3 pairs: mean / b", 1.5, "MISSED")
    assert (middle.what, middle.ratio, middle.verdict) == ("median of 3 pairs: mean / c", 0.4, "met")
    assert (failed.row.against, failed.row.verdict) == ("byzfl, ValueError: no", "")
    assert list(simulated.summary([failed])) == []


def test_every_aggregator_and_pre_aggregator_is_measured() -> None:
    assert {contest.rule for contest in CONTESTS} == {*AGGREGATORS, *PRE_AGGREGATORS}
    assert len({contest.title for contest in CONTESTS}) == len(CONTESTS)


def test_sections_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.wires, "rows", lambda repeats: iter([Row("w", "s", 1.0, "y", 1.2, 1.1)]))
    bench.main(tmp_path / "bench.json", quick=True, only=["wires"])
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["what"] for row in written["rows"]] == ["w"]
    assert written["aggregators"] == []


def test_the_section_of_gpus_measures_every_rule_and_shows_the_worst_first(
    gpu: torch.device, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_section, "CALLS", 1)
    bench.main(tmp_path / "bench.json", quick=True, only=["gpu"])
    lines = json.loads((tmp_path / "bench.json").read_text())["gpu"]
    assert {line["what"].split(",")[0] for line in lines} >= {*AGGREGATORS, *PRE_AGGREGATORS, "cyclic: all at once"}
    assert {line["verdict"] for line in lines} <= {"met", "MISSED", "itself", "to compare"}  # nothing failed
    assert all(line["seconds"] > 0 and line["part"] > 0 for line in lines)
    made = [gpu_section.Figure(what, "", 1.0, least, 100.0, "a GPU") for what, least in [("b", 60), ("c", 59)]]
    assert [line.verdict for line in made] == ["met", "MISSED"]
    capsys.readouterr()
    Console().print(gpu_section.table(made))
    shown = capsys.readouterr().out
    assert shown.rindex("59%") < shown.rindex("60%")


def test_without_a_gpu_its_section_says_so_and_the_others_go_on(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_section.devices, "gpus", lambda: 0)
    monkeypatch.setattr(bench.wires, "rows", lambda repeats: iter([Row("w", "s", 1.0, "y", 1.2, 1.1)]))
    bench.main(tmp_path / "bench.json", quick=True, only=["gpu", "wires"])
    written = json.loads((tmp_path / "bench.json").read_text())
    assert ([row["what"] for row in written["rows"]], written["gpu"]) == (["w"], [])
    assert "gpu: torch sees no GPU here, so this section is left out" in capsys.readouterr().err


def test_an_unknown_section_is_refused(capsys) -> None:
    assert main(["bench", "--only", "aggregator"]) == 2
    assert "--only aggregator is not one of kernels, aggregators" in capsys.readouterr().err


class Rival(NamedTuple):
    """What a peer's rule does, and how often it was called."""

    calls: list[int]
    seconds: float = 0.0
    error: str = ""
    spoils: bool = False

    def __call__(self, gradients: Tensor) -> None:
        self.calls.append(int(gradients[0, 0]))
        time.sleep(self.seconds)
        if self.spoils:
            gradients.zero_()
        if self.error:
            raise RuntimeError(self.error)


def test_a_slow_rival_is_called_once_one_that_fails_is_named_and_what_is_spoilt_is_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "ENOUGH", 0.05)
    slow, failing, spoiling, own = (
        Rival([], seconds=0.06),
        Rival([], error="no such\ndtype"),
        Rival([], spoils=True),
        Rival([]),
    )
    runs: dict[str, Callable[[Tensor], object]] = {"byzfl": spoiling, "byzpy": failing, "hdmedians": slow, "ours": own}
    reasons: dict[str, str] = {}
    seconds = rules.timed(runs, torch.ones(2, 2), 3, True, reasons)
    assert (slow.calls, failing.calls, spoiling.calls, own.calls) == ([1], [1], [1] * 4, [1] * 4)
    assert reasons == {"byzpy": "RuntimeError: no such"}
    assert set(seconds) == {"byzfl", "hdmedians", "ours"}
    assert seconds["hdmedians"] >= 0.06
    with pytest.raises(RuntimeError):  # ours must not fail
        rules.timed({"ours": failing}, torch.ones(2, 2), 1, False, {})


def test_what_would_take_hours_or_all_memory_is_left_out_with_its_reason() -> None:
    assert hopeless("byzfl", "mda", 45, 10, 100, 1e12) == "3,190,187,286 subsets"
    assert hopeless("byzpy", "smea", 20, 4, 100, 1e12) is None
    assert hopeless("byzfl", "nnm", 45, 10, 1_000_000, 1e9) == "takes 6.3 GB"
    assert hopeless("byzfl", "nnm", 45, 10, 1_000_000, 1e10) is None


def test_a_missing_peer_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise MissingError(f"{module.split('.')[0]} is not installed here")

    monkeypatch.setattr(contests, "load", missing)
    monkeypatch.setattr(rules.memory, "measured", lambda n, d, f: {})
    monkeypatch.setattr(rules, "CONTESTS", CONTESTS[1:2])
    (figure,) = rules.figures(quick=True)
    assert figure.reasons == {name: f"{name} is not installed here" for name in ("byzfl", "byzpy")}
    assert (figure.peers, figure.ratio, figure.verdict) == ({}, None, "")
    assert figure._replace(ratio=4.9).verdict == "MISSED"
    assert figure._replace(ratio=5.0).verdict == "met"
    console = Console(width=120)
    with console.capture() as shown:
        console.print(*rules.tables([figure]))
    assert "* median, byzfl: byzfl is not installed here" in shown.get()


def test_bulyan_is_timed_with_the_byzantine_rows_that_it_tolerates() -> None:
    assert contests.tolerated("bulyan", 10, 2) == 1
    assert contests.tolerated("krum", 10, 2) == 2


def test_a_ratio_above_its_target_is_called_missed() -> None:
    row = Row("x", "n=1", 1.0, "y", 1.2, 1.1)
    assert row.verdict == "MISSED"
    assert row._replace(ratio=1.1).verdict == "met"
    assert row._replace(target=None).verdict == ""


def test_variants_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3
