"""One recorded run of every scheme, and of what keeps state of its own: models that no restructuring may change.

    python tests/training/witness.py      writes witness.json beside this file anew

Write it anew only with a change that is meant to change what is computed, and say so in the changelog.
"""

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from draco import data, files
from draco.job import parse, to_yaml
from draco.runs import directory as run_directory
from draco.runs import events
from draco.runs.machine import describe
from draco.training import checkpoint, process
from draco.training.build import Built

RECORD = Path(__file__).with_name("witness.json")
ATTACKED = "attack={name: reverse_gradient, who: drawn}"
RUNS = {
    "uncoded": ["scheme={name: uncoded, adversaries: 2}", "aggregator=krum", "attack={name: alie, z: 1.0}"],
    "repetition": ["scheme={name: repetition, adversaries: 1}", ATTACKED],
    "cyclic": ["scheme={name: cyclic, adversaries: 2}", ATTACKED],
    "cyclic, explicit": ["scheme={name: cyclic, adversaries: 1, encoding: explicit}", "attack=adjacent"],
    "cyclic_dft": ["scheme={name: cyclic_dft, adversaries: 1}", "attack=orthogonal_to_projection"],
    "detox": ["scheme={name: detox, adversaries: 2}", "aggregator=median", "attack=split_vote"],
    "placement": [
        "workers=12",
        "batch_size=48",
        "scheme={name: placement, adversaries: 2}",
        "aggregator=median",
        ATTACKED,
    ],
    "approximate": ["scheme={name: approximate, adversaries: 1, stragglers: 1}", "attack=tiny"],
    "approximate, drawn": ["scheme={name: approximate, code: stochastic_block, redundancy: 3}"],
    "election": ["scheme={name: election, adversaries: 1}", "optimizer.lr=0.001", "attack=sign_flip"],
    "solon": ["scheme={name: solon, adversaries: 1}", "attack=rank_one_collusion"],
    "monna": [
        "scheme={name: uncoded, adversaries: 2}",
        "aggregator={name: monna, trusted: 2}",
        "attack={name: ipm, ranks: [1, 3]}",
    ],
    "centered_clipping": [
        "aggregator={name: centered_clipping, tau: 0.5, iterations: 2, pre: [{name: bucketing, size: 2}, nnm]}"
    ],
    "worker momentum": [
        "scheme={name: uncoded, adversaries: 2}",
        "data.split=dirichlet",
        "data.alpha=0.5",
        "local={momentum: 0.9, clip: 1.0}",
        "aggregator={name: trimmed_mean, pre: [arc]}",
        "attack=mimic",
    ],
    "batch norm": [
        "workers=3",
        "batch_size=6",
        "model=resnet18",
        "scheme={name: repetition, adversaries: 1}",
        "attack=random",
    ],
    "dropout": [
        "workers=3",
        "batch_size=6",
        "model=vgg11",
        "data.name=synthetic_rgb",
        "scheme={name: cyclic, adversaries: 1}",
        "optimizer={name: adam}",
        "attack=label_flip",
    ],
}
JOB = """
name: witness
workers: 9
launcher: simulate
model: lenet
data: synthetic
batch_size: 45
steps: 3
scheme: uncoded
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
checkpoint_every: 100
eval_every: 0
"""


def machine() -> str:
    """Return what decides the bits of a model beside the job: torch, and the processor with stepping and cache."""
    facts = describe()
    known = ("cpu family", "model", "stepping", "cache size", "flags")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().partition("\n\n")[0].splitlines() if cpuinfo.exists() else []
    own = [line for line in lines if line.partition(":")[0].strip() in known]
    processor = hashlib.sha256("\n".join(own).encode()).hexdigest()[:16]
    return f"{facts['torch']} {facts['instructions']} {facts['cpu']} {platform.machine()} {processor}"


def run(name: str, folder: Path) -> dict[str, Any]:
    """Train the named run in `folder`, which keeps its data sets; return what is recorded of it."""
    torch.set_num_threads(1)
    job = parse(JOB, name, [*RUNS[name], f"data.root={folder / 'data'}"])
    data.prepare(job.data.name, folder / "data")
    directory = run_directory.create(folder / "runs", job.name, to_yaml(job))
    files.replace(directory / "secret", b"11" * 32)
    process.serve_all(Built(job), directory)
    path = checkpoint.newest(directory / "checkpoints")
    assert path is not None
    state = checkpoint.load(path)["model"]
    digest = hashlib.sha256()
    for value in state.values():
        digest.update(value.contiguous().numpy().tobytes())
    norm = sum(float(value.double().square().sum()) for value in state.values()) ** 0.5
    steps = [event for event in events.read(directory / "events.jsonl") if event["event"] == "step"]
    return {
        "sha256": digest.hexdigest(),
        "norm": norm,
        "losses": [step["loss"] for step in steps],
        "suspects": [step["suspects"] for step in steps],
    }


def main() -> None:
    """Record every run."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: run(name, Path(folder)) for name in RUNS}
    RECORD.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
