"""The benchmark runs, and its table holds every figure that has a target. Small sizes: the times mean nothing here."""

import json
from pathlib import Path

from draco import bench
from draco.bench.timing import Row, alternate


def test_the_benchmark_prints_every_target_and_writes_its_figures(tmp_path: Path, capsys) -> None:
    bench.main(tmp_path / "bench.json", quick=True)
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
        ("cyclic decode at constant n*d, 0 errors", 1.3),
        ("cyclic decode at constant n*d, 2 errors", 1.3),
    } <= targets
    assert {"hdmedians geometric median", "the paper's complex decode, 2 errors"} <= {row["what"] for row in rows}
    assert {"bytes of float16", "pack and unpack float32 + blosc2"} <= {row["what"] for row in rows}
    assert all(row["seconds"] > 0 or row["what"].startswith("of which") for row in rows)
    assert "Ratios of medians" in capsys.readouterr().out


def test_a_ratio_above_its_target_is_called_missed() -> None:
    row = Row("x", "n=1", 1.0, "y", 1.2, 1.1)
    assert row.verdict == "MISSED"
    assert row._replace(ratio=1.1).verdict == "met"
    assert row._replace(target=None).verdict == ""


def test_variants_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3
