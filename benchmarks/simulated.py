"""The simulated step beside byzfl's training loop: the same model, workers, samples, rule and attack, in one process.

byzfl's side is the loop of its documentation (algorithm DSGD): a `Client` for each honest worker, one `Server`, one
`ByzantineClient`. It computes the honest gradients only, as one vector stands for all Byzantine workers. It is spared
what is no part of a step: images are normalised tensors, not files, and no accuracy is computed. Both sides have LeNet,
one thread, SGD without momentum, and take turns; times are the process's on its processor, as nothing waits.

Shapes: n workers, f of them Byzantine.
"""

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import load
from benchmarks.timing import Row
from draco import data, models
from draco.data import batches
from draco.errors import TrainingError
from draco.job import parse
from draco.training import process, transport
from draco.training.build import Built
from draco.training.server import Server
from draco.training.state import Training

# byzfl's own default experiment: 10 honest clients with 25 samples each, and LeNet's 431,080 parameters.
HONEST, BYZANTINE, SAMPLES = 10, 2, 25
RATE = 0.01
ENOUGH = 1.5  # seconds in steps of one side of a pair, after which it takes no more
STEPS = 15  # and no more than this, after one that warms up
SLOWEST, MEDIAN = 1.0, 0.5  # aims: our time to theirs in every pair, and in the median one

F: Mapping[str, Any] = {"f": BYZANTINE}
# Our rule with its pre-aggregators -> (byzfl's, its parameters), and those before it; the settings are the same.
RULES: Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {
    "mean": (("Average", {}),),
    "median": (("Median", {}),),
    "trimmed_mean": (("TrMean", F),),
    "meamed": (("Meamed", F),),
    "{name: geometric_median, nu: 0.1}": (("GeometricMedian", {"nu": 0.1, "T": 3}),),  # ours until it has converged
    "krum": (("Krum", F),),
    "multi_krum": (("MultiKrum", F),),
    "mda": (("MDA", F),),
    "smea": (("SMEA", F),),
    "caf": (("CAF", F),),
    "{name: centered_clipping, tau: 100.0, iterations: 1}": (("CenteredClipping", {"L": 1, "tau": 100.0}),),
    "{name: monna, trusted: 1}": (("MoNNA", {**F, "idx": 0}),),
    "{name: trimmed_mean, pre: [nnm]}": (("TrMean", F), ("NNM", F)),
    "{name: trimmed_mean, pre: [{name: bucketing, size: 2}]}": (("TrMean", F), ("Bucketing", {"s": 2})),
    "{name: trimmed_mean, pre: [{name: clipping, c: 2.0}, nnm]}": (("TrMean", F), ("Clipping", {"c": 2.0}), ("NNM", F)),
    "{name: trimmed_mean, pre: [arc]}": (("TrMean", F), ("ARC", F)),
}
# Our attack -> byzfl's. byzfl flips the sign of the honest mean, which is our ipm with epsilon = 1.
ATTACKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "{name: ipm, epsilon: 1.0}": ("SignFlipping", {}),
    "{name: ipm, epsilon: 2.0}": ("InnerProductManipulation", {"tau": 2.0}),
    "ipm_optimised": ("Optimal_InnerProductManipulation", {}),
    "{name: alie, z: 1.5}": ("ALittleIsEnough", {"tau": 1.5}),
    "alie_optimised": ("Optimal_ALittleIsEnough", {}),
    "mimic": ("Mimic", {}),
    "inf": ("Inf", {}),
    "{name: random, magnitude: 1.0}": ("Gaussian", {"mu": 0.0, "sigma": 1.0}),
    "label_flip": ("LabelFlipping", {}),
}
QUICK = ("{name: trimmed_mean, pre: [nnm]}", "{name: alie, z: 1.5}")  # the pair of a quick check
Step = Callable[[], object]


class Pair(NamedTuple):
    """One rule under one attack."""

    rule: str
    attack: str
    ours: float  # seconds of a step
    theirs: float | None  # None: byzfl's step fails
    why: str = ""  # it fails

    @property
    def ratio(self) -> float:
        """Return our time to theirs; NaN: they have none."""
        return math.nan if self.theirs is None else self.ours / self.theirs

    @property
    def row(self) -> Row:
        """Return the pair's line of the table."""
        against = f"byzfl, {self.why or f'{(self.theirs or 0) * 1e3:.0f} ms'}"
        target = None if self.theirs is None else SLOWEST
        return Row(f"{_short(self.rule)} / {_short(self.attack)}", SIZE, self.ours, against, self.ratio, target)


SIZE = f"lenet n={HONEST + BYZANTINE} f={BYZANTINE}, {SAMPLES} each"


def rows(quick: bool) -> Iterator[Row]:
    """Yield a line for each pair of a rule and an attack that both have, then the slowest and the median of them."""
    with tempfile.TemporaryDirectory() as folder:
        data.prepare("synthetic", Path(folder))
        pairs = [QUICK] if quick else [(rule, attack) for rule in RULES for attack in ATTACKS]
        taken = []
        for rule, attack in pairs:
            taken.append(_pair(Path(folder), rule, attack, 2 if quick else STEPS))
            yield taken[-1].row
    yield from summary(taken)


def summary(pairs: list[Pair]) -> Iterator[Row]:
    """Yield the slowest and the median of the pairs that byzfl has a time for."""
    known = sorted((pair for pair in pairs if pair.theirs), key=lambda pair: pair.ratio)
    if not known:
        return
    for what, pair, target in (
        ("slowest of", known[-1], SLOWEST),
        ("median of", known[len(known) // 2], MEDIAN),
    ):
        yield pair.row._replace(what=f"{what} {len(known)} pairs: {pair.row.what}", target=target)


def _pair(folder: Path, rule: str, attack: str, steps: int) -> Pair:
    sides: dict[str, Step] = {"ours": our_step(folder, rule, attack), "theirs": their_step(folder, rule, attack)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(steps + 1):
        for name, step in sides.items():
            if seconds[name] and sum(seconds[name]) > ENOUGH:
                continue
            began = time.process_time()
            try:
                step()
            except Exception as error:
                if isinstance(error, TrainingError) and len(seconds[name]) > 1:
                    break  # it has diverged, as the mean does under `inf`; what it took until then counts
                if name == "ours":
                    raise
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                return Pair(rule, attack, median(seconds["ours"]), None, why)
            seconds[name].append(time.process_time() - began)
    ours, theirs = (median(taken[1:] or taken) for taken in seconds.values())
    return Pair(rule, attack, ours, theirs)


def our_step(folder: Path, rule: str, attack: str) -> Step:
    """Return a function that takes the next step of a simulated run."""
    n = HONEST + BYZANTINE
    text = f"{{name: simulated, launcher: simulate, workers: {n}, batch_size: {n * SAMPLES}, steps: 1000, model: lenet,"
    text += f" data: synthetic, scheme: {{name: uncoded, adversaries: {BYZANTINE}}}, aggregator: {rule},"
    text += f" optimizer: {{name: sgd, lr: {RATE}, momentum: 0.0}}}}"
    last = list(range(HONEST + 1, n + 1))
    job = parse(text, "bench", [f"attack={attack}", f"attack.ranks={last}", f"data.root={folder}"])
    built = Built(job)
    workers = process.simulated_workers(built.again())
    side = transport.Simulated([w.reply for w in workers], [b""] * n, [w.momenta for w in workers])
    return Server(built, Training(built), side, bytes(32)).run_step


def their_step(folder: Path, rule: str, attack: str) -> Step:
    """Return a function that takes the next step as byzfl's `start_training` does, with our LeNet as its model."""
    peer, known = load("byzfl.fed_framework"), load("byzfl.fed_framework.models")
    split = data.load("synthetic", folder, "train")
    known.lenet = lambda: with_torchs_pooling(models.build_model("lenet", split.info.shape, split.info.classes, 1))
    name, parameters = ATTACKS[attack]
    aggregator, *before = [{"name": name, "parameters": dict(given)} for name, given in RULES[rule]]
    common = {"model_name": "lenet", "device": "cpu", "learning_rate": RATE, "weight_decay": 0.0, "milestones": []}
    common |= {"learning_rate_decay": 1.0, "optimizer_name": "SGD"}
    whole = len(split.labels) // (HONEST * SAMPLES) * HONEST * SAMPLES  # no share ends with a smaller batch
    images, labels = batches.batch(split, torch.arange(whole), None)
    dataset = TensorDataset(images, labels)
    dataset.targets = labels  # type: ignore[attr-defined]
    shares = peer.DataDistributor({
        "data_distribution_name": "iid", "nb_honest": HONEST, "data_loader": DataLoader(dataset), "batch_size": SAMPLES,
    }).split_data()  # fmt: skip
    clients = [
        peer.Client({
            **common, "loss_name": "CrossEntropyLoss", "LabelFlipping": name == "LabelFlipping", "momentum": 0.0,
            "training_dataloader": share, "nb_labels": split.info.classes, "store_per_client_metrics": False,
        })
        for share in shares
    ]  # fmt: skip
    server = peer.Server(
        {**common, "test_loader": DataLoader(dataset), "aggregator_info": aggregator, "pre_agg_list": before}
    )
    told = {**parameters, "aggregator_info": aggregator, "pre_agg_list": list(before), **F}
    byzantine = peer.ByzantineClient({"name": name, "f": BYZANTINE, "parameters": told})

    def step() -> None:
        for client in clients:
            client.compute_gradients()
        honest = [client.get_flat_gradients_with_momentum() for client in clients]
        flipped = name == "LabelFlipping"
        seen = [client.get_flat_flipped_gradients() for client in clients] if flipped else honest
        server.update_model_with_gradients(honest + byzantine.apply_attack(seen))
        for client in clients:
            client.set_model_state(server.get_dict_parameters())

    return step


def with_torchs_pooling(model: nn.Module) -> nn.Module:
    """Give a model of ours torch's own pooling back, and return it."""
    for name, child in model.named_children():
        if isinstance(child, nn.MaxPool2d):
            setattr(model, name, nn.MaxPool2d(2))
    return model


def _short(text: str) -> str:
    """Return a rule or an attack as a table has room for.

    >>> _short("{name: trimmed_mean, pre: [{name: clipping, c: 2.0}, nnm]}")
    'trimmed_mean after clipping c 2.0, nnm'
    """
    words = re.sub(r"[{}\[\]]|name: ", "", text).replace(", pre: ", " after ")
    return re.sub(r",? (\w+): ", r" \1 ", words)
