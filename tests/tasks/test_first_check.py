"""The first check: every mistake is told with file and line, and what is right passes."""

import inspect
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tasks import broken_tasks as broken
from torch import Tensor, nn

from draco.errors import OwnCodeError
from draco.tasks import Task
from draco.tasks.building import task_model
from draco.tasks.first_check import Setting, blame_not_finite, first_check, look

FILE = "tests/tasks/broken_tasks.py"
SETTING = Setting("my.py:Mine", seed=3, batch_size=12, partitions=3, joined=True)
WIDE = {broken.Narrowed, broken.FixedFormat}  # mistakes in jobs that compute in float64 only
# A task with a mistake -> words of the sentence that tells it.
MISTAKES = {
    broken.NoModule: ["model()", "returns a function, not a torch.nn.Module"],
    broken.ModelRaises: ["model()", "TypeError"],
    broken.AllFrozen: ["model()", "no parameters to train (all 4 are frozen)"],
    broken.Doubles: ["not float32: 0.weight (float64), 0.bias (float64), 2.weight (float64) and 1 more"],
    broken.Elsewhere: ["not on the CPU: 0.weight (meta)"],
    broken.Unseeded: ["built twice from the same seed it has other bits in 2.weight"],
    broken.OtherDropout: ["AlphaDropout 1 draws from torch's global generator; use torch.nn.Dropout"],
    broken.Attention: ["MultiheadAttention attend has dropout=0.1"],
    broken.Compiled: ["the model is wrapped by torch.compile; return the module inside"],
    broken.Parallel: ["wrapped by DataParallel"],
    broken.Lazy: ["0.weight, 0.bias have no shape yet"],
    broken.Cumulative: ["1: BatchNorm with momentum=None"],
    broken.Carries: ["model()", "the buffers 1.size change in every forward"],
    broken.SamplesRaise: ["samples()", "FileNotFoundError: no such file: data.csv"],
    broken.Nothing: ["returns None, which has no len and items"],
    broken.Stream: ["returns a generator, which has no len and items"],
    broken.Empty: ['samples("train") has no samples'],
    broken.Few: ['samples("train") has 5 samples, and batch_size is 12'],
    broken.AList: ["has 2 samples", "for tensors of N rows return a tuple"],
    broken.UnlikeRows: ["'x' has 40, 'y' has 39"],
    broken.Arrays: ["[0] is a ndarray", "torch.as_tensor"],
    broken.Shuffled: ['two calls of samples("train") give another sample 0'],
    broken.BadItem: ["ZeroDivisionError", "(sample 39)"],
    broken.Ragged: ["item[0] (5,) float32", "item[0] (4,) float32", "write a collate() that pads"],
    broken.Named: ["batch[2][0] is a str", "a batch holds tensors only"],
    broken.RandomItems: ["`shift = random.random()", "draws from Python's global generator"],
    broken.Timed: ["the same samples at two times differ in batch[0]"],
    broken.OneTooMany: ["collate()", "of 4 samples it makes batch (5, 4) float32"],
    broken.LossRaises: ["loss()", "RuntimeError", "the batch is batch[0] (4, 4) float32, batch[1] (4,) int64"],
    broken.NoTensor: ["loss()", "returns a float, not a tensor"],
    broken.Mean: [
        "the shape (), and must return the loss of each sample, (4,)",
        'reduction="none"',
        "per_sample = False",
    ],
    broken.PerToken: ["the shape (4, 3)", ".flatten(1).mean(1)"],
    broken.Column: ["the shape (4, 1)", ".squeeze(1)"],
    broken.Vector: ["the shape (4,), and with per_sample = False it is one number"],
    broken.Whole: ["returns int64 numbers, which have no gradient"],
    broken.Detached: ["it has no gradient"],
    broken.Infinite: ["and 1 more is not finite at step 1 (-inf", "look at what loss() makes of them"],
    broken.InfiniteModel: ["the model's 2.weight has NaN or infinity already"],
    broken.InfiniteSample: ["batch[0] has NaN or infinity already: look at the samples"],
    broken.InfiniteGradient: ["the gradient of 0.weight, 0.bias, 2.weight and 1 more is not finite"],
    broken.Functional: ["F.dropout draws from torch's global generator; use torch.nn.Dropout in the model"],
    broken.Noise: ["loss()", "torch.randn_like draws from torch's global generator"],
    broken.NumpyNoise: ["`scale = np.random.uniform(0.5, 1.5)", "draws from numpy's global generator"],
    broken.PythonNoise: ["`if random.random() < 2:", "draws from Python's global generator"],
    broken.DropsLayers: ["torch.rand draws from torch's global generator"],
    broken.Counts: ["the same partition has another loss of samples", "counts calls"],
    broken.Updates: ["it changes the parameters 0.weight themselves"],
    broken.DefaultDtype: ["it changes torch.get_default_dtype() for the whole process"],
    broken.Contrast: ["they influence each other; per_sample = False"],
    broken.MixesInModel: ["from OwnNorm 1 on: they influence each other"],
    broken.AugmentsGlobally: ["augment()", "torch.randn draws from torch's global generator"],
    broken.AugmentsAnew: ["two calls with equal generators differ in batch[0]"],
    broken.AugmentsTwice: ["of a batch of 4 samples it makes batch[0] (8, 4)"],
    broken.AugmentsInPlace: ["it changes the samples themselves"],
    broken.NoDict: ["evaluate()", "returns a Tensor, and must return a dict"],
    broken.NoLoss: ['returns accuracy, and no "loss"'],
    broken.Accuracy: ["'accuracy' is () float32, and must be a tensor of one figure for each sample, (4,)"],
    broken.OddName: ["'top-1 (%)' cannot be names"],
    broken.Narrowed: ["loss()", "to_copy() makes fewer bits of float64 numbers", "precision: float64_rounded"],
    broken.FixedFormat: ["loss()", "RuntimeError", "model and batch are float64, as precision: float64_rounded"],
}


def named_line(kind: type) -> int:
    """Return the line of a class, or of a module that its model has, that ends with the comment HERE."""
    for thing in (kind, broken.LayerDrop):
        lines, first = inspect.getsourcelines(thing)
        for place, line in enumerate(lines, start=first):
            if line.rstrip().endswith("# HERE"):
                return place
    raise AssertionError(kind)


def setting_for(kind: type[broken.Right]) -> Setting:
    return SETTING._replace(wide=kind in WIDE)


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_a_mistake_is_told_once_with_file_and_line(kind: type[broken.Right]) -> None:
    with pytest.raises(OwnCodeError) as caught:
        first_check(kind(), setting_for(kind))
    told = str(caught.value).splitlines()
    assert len(told) == 1, told
    sentence = told[0]
    assert sentence.startswith("my.py:Mine: ")
    assert f"{FILE}, line {named_line(kind)}:" in sentence
    assert [words for words in MISTAKES[kind] if words not in sentence] == []


RAISING = {broken.ModelRaises, broken.SamplesRaise, broken.FixedFormat}  # what they say is their own
FAQ = (Path(__file__).parents[2] / "docs/faq.md").read_text()
SECTION = FAQ.split("\n## The first check of a task\n")[1].split("\n## ")[0]
ENTRIES = [span for line in SECTION.splitlines() if line.startswith("| `") for span in re.findall(r"`([^`]+)`", line)]


@pytest.mark.parametrize("kind", [kind for kind in MISTAKES if kind not in RAISING], ids=lambda kind: kind.__name__)
def test_the_faq_has_every_sentence(kind: type[broken.Right]) -> None:
    (sentence,) = look(kind(), setting_for(kind)).faults
    said = re.sub(r"^my\.py:Mine: \w+\(\), [\w/.]+, line \d+: ", "", sentence)
    patterns = [".*".join(map(re.escape, re.split("<[^>]*>", entry.removesuffix("…")))) for entry in ENTRIES]
    assert any(re.match(pattern, said) for pattern in patterns if re.search("[a-z]{3}", pattern)), said


@pytest.mark.parametrize("kind", sorted(WIDE, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_a_fixed_format_is_no_mistake_in_float32(kind: type[broken.Right]) -> None:
    assert look(kind(), SETTING).faults == []


def test_what_is_right_passes_in_float64_too_and_keeps_its_model() -> None:
    model = task_model(Tokens(), 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first_check(Tokens(), SETTING._replace(wide=True), model=lambda: model)
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_page_has_every_method_of_a_task() -> None:
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
    methods = [name for name, value in vars(Task).items() if callable(value) and not name.startswith("_")]
    assert [name for name in methods if f"| `{name}(" not in page] == []


def test_every_broken_task_is_in_the_table() -> None:
    kinds = {each for each in vars(broken).values() if isinstance(each, type) and issubclass(each, broken.Right)}
    assert kinds - {broken.Right} == {*MISTAKES}


class Tokens(broken.Right):
    """A language model: dict batches of token sequences, nn.Dropout, tied weights, a loss averaged per sequence."""

    def model(self) -> nn.Module:
        embedding, head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        head.weight = embedding.weight
        return nn.Sequential(embedding, nn.Dropout(0.3), nn.LayerNorm(8), head)

    def samples(self, split: str) -> Any:
        return {"tokens": torch.randint(11, (30, 9)), "weight": torch.ones(30)}

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        tokens = batch["tokens"]
        outputs = model(tokens[:, :-1]).transpose(1, 2)
        return F.cross_entropy(outputs, tokens[:, 1:], reduction="none").mean(1) * batch["weight"]

    def evaluate(self, model: nn.Module, batch: Any) -> Any:
        loss = self.loss(model, batch)
        return {"loss": loss, "perplexity": loss.exp()}


class Normalised(broken.Right):
    """BatchNorm, whose statistics are carried, in a data set of items that is augmented by the given generator."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))

    def samples(self, split: str) -> Any:
        return broken.Items()

    def augment(self, batch: Any, generator: torch.Generator) -> Any:
        return [batch[0] + torch.randn(batch[0].shape, generator=generator), batch[1]]


class Together(broken.Contrast):
    """Samples that are compared with each other, and a task that says so."""

    per_sample = False

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss(model, batch).mean()


class FineTuned(broken.Right):
    """A frozen base in half precision below a trained layer, with a buffer that caches what it computed."""

    def model(self) -> nn.Module:
        return Base()

    def labels(self, samples: Any) -> Tensor:
        return samples[1]

    def flipped(self, batch: Any) -> Any:
        return batch[0], 2 - batch[1]


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(4, 8).half().requires_grad_(False), nn.Linear(8, 3)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = torch.arange(8.0)
        return self.head(self.base(x.half()).float() + self.cache)


NEEDS = SETTING._replace(labels_for="data.split: by_class", flipped_for="attack: label_flip")


class Text:
    """One long text, of which each sample is a window; only the task's own batch() knows how."""

    def __init__(self) -> None:
        self.letters = np.arange(200) % 11

    def __len__(self) -> int:
        return 40


class Windows(Tokens):
    """Windows of a text in numpy, cut out by batch(), from random places while training."""

    def samples(self, split: str) -> Any:
        return Text()

    def batch(self, samples: Any, indices: Tensor) -> Any:
        return self.cut(samples, indices * 4)

    def drawn(self, samples: Any, indices: Tensor, generator: torch.Generator) -> Any:
        return self.cut(samples, torch.randint(190, (len(indices),), generator=generator))

    def cut(self, samples: Any, places: Tensor) -> Any:
        tokens = [torch.from_numpy(samples.letters[place : place + 9]) for place in places.tolist()]
        return {"tokens": torch.stack(tokens), "weight": torch.ones(len(places))}


RIGHT = [broken.Right, Tokens, Normalised, Together, FineTuned, Windows]


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_what_is_right_passes_without_a_word(kind: type[broken.Right]) -> None:
    found = first_check(kind(), NEEDS if kind is FineTuned else SETTING)
    assert found.warnings == []
    assert found.train in (30, 40)
    assert found.test in (30, 40)
    assert found.seconds > 0


def test_what_was_seen_is_told() -> None:
    found = first_check(FineTuned(), NEEDS)
    assert (found.trained, found.frozen, found.statistics) == (8 * 3 + 3, 4 * 8 + 8, 0)
    assert found.batch == "batch[0] (4, 4) float32, batch[1] (4,) int64"
    assert first_check(Normalised(), SETTING).statistics == 2 * 8


def test_all_mistakes_that_can_be_found_are_told_at_once() -> None:
    class Several(broken.Doubles):
        def samples(self, split: str) -> Any:
            return [*broken.rows()]

        def labels(self, samples: Any) -> None:
            return None

    found = look(Several(), NEEDS)
    assert [fault.split(", ")[0] for fault in found.faults] == ["my.py:Mine: samples()", "my.py:Mine: model()"]


def test_generators_weights_and_statistics_are_left_as_they_were() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    task = Normalised()
    model = task_model(task, SETTING.seed)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first_check(task, SETTING, samples=task.samples, model=lambda: model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training


class TestNeeds:
    """What an attack or a way of dealing samples out asks of a task beyond its contract."""

    def test_labels(self) -> None:
        found = look(broken.Right(), SETTING._replace(labels_for="data.split: by_class"))
        assert "data.split: by_class deals samples out by their class" in found.faults[0]
        assert "give it labels(samples)" in found.faults[0]

    def test_flipped(self) -> None:
        found = look(broken.Right(), SETTING._replace(flipped_for="attack: label_flip"))
        assert "attack: label_flip needs false labels" in found.faults[0]

    def test_labels_of_the_wrong_kind(self) -> None:
        class Floats(broken.Right):
            def labels(self, samples: Any) -> Tensor:
                return samples[1].float()

        found = look(Floats(), SETTING._replace(labels_for="data.split: by_class"))
        assert "returns (40,) float32, and must return the class of each sample, (40,) int64" in found.faults[0]


class TestWarnings:
    """What is doubtful is told, and stops nothing."""

    def test_parameters_without_a_gradient(self) -> None:
        class Unused(broken.Right):
            def model(self) -> nn.Module:
                model = super().model()
                model.register_parameter("spare", nn.Parameter(torch.ones(2)))
                return model

        assert "spare get no gradient and stay as they are" in first_check(Unused(), SETTING).warnings[0]

    def test_an_evaluation_that_draws(self) -> None:
        class Draws(broken.Right):
            def evaluate(self, model: nn.Module, batch: Any) -> Any:
                return {"loss": self.loss(model, batch) + torch.rand(()) * 0}

        (warning,) = first_check(Draws(), SETTING).warnings
        assert "evaluate(), tests/tasks/test_first_check.py, line" in warning
        assert "torch.rand draws from torch's global generator" in warning

    def test_samples_that_are_not_finite(self) -> None:
        class Missing(broken.Right):
            def loss(self, model: nn.Module, batch: Any) -> Tensor:
                return super().loss(model, (batch[0].nan_to_num(), batch[1]))

            def samples(self, split: str) -> Any:
                x, y = broken.rows()
                return x.index_fill(1, torch.tensor([2]), float("nan")), y

        assert "batch[0] of the first batch is not finite" in first_check(Missing(), SETTING).warnings[0]

    def test_batch_norm_without_running_statistics(self) -> None:
        class Without(broken.Right):
            def model(self) -> nn.Module:
                norm = nn.BatchNorm1d(8, track_running_stats=False)
                return nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 3))

        assert "1: BatchNorm without running statistics" in first_check(Without(), SETTING).warnings[0]


def test_batch_norm_needs_two_samples_in_a_partition() -> None:
    found = look(Normalised(), SETTING._replace(batch_size=3))
    assert "1: BatchNorm needs 2 samples in a partition" in found.faults[0]


def test_a_later_batch_that_is_not_finite_is_blamed() -> None:
    task, late = broken.Right(), (torch.full((2, 4), float("inf")), torch.tensor([0, 1]))
    model = task_model(task, 1)
    assert "batch[0] has NaN or infinity already" in blame_not_finite(
        task, SETTING, model, late, places=[30, 31], step=7
    )
    assert blame_not_finite(task, SETTING, model, (torch.ones(2, 4), torch.tensor([0, 1])), places=[0, 1], step=7) == ""


def test_modules_that_drop_out_alike_are_told_in_one_sentence() -> None:
    class Encoder(broken.Right):
        def model(self) -> nn.Module:
            layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
            return nn.Sequential(nn.TransformerEncoder(layer, 5), nn.Linear(4, 3))

        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            return super().loss(lambda x: model(x[:, None])[:, 0], batch)

    names = "0.layers.0.self_attn, 0.layers.1.self_attn, 0.layers.2.self_attn and 2 more"
    (fault,) = look(Encoder(), SETTING).faults
    assert f"MultiheadAttention {names} has dropout=0.1, drawn from torch's global generator; set it to 0.0" in fault


def test_a_dropout_with_a_forward_of_its_own_is_refused() -> None:
    class Harder(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.p

    class Hard(broken.Right):
        def model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(4, 3), Harder(0.5))

    (fault,) = look(Hard(), SETTING).faults
    assert "Harder 1 is a torch.nn.Dropout with a forward() of its own" in fault
