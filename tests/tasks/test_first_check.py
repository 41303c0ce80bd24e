"""The first check: every mistake is told with file and line, and what is right passes."""

import inspect
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tasks import broken_tasks as broken
from torch import Tensor, nn

from draco.errors import OwnCodeError
from draco.tasks.first_check import Found, Setting, first_check, look

FILE = "tests/tasks/broken_tasks.py"
SETTING = Setting("my.py:Mine", seed=3, batch_size=12, partitions=3, joined=True)
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
    broken.Infinite: ["samples 0, 1, 2 and 1 more of the batch is not finite", "look at what loss() makes of them"],
    broken.InfiniteModel: ["the model's 2.weight has NaN or infinity already"],
    broken.InfiniteSample: ["batch[0] has NaN or infinity already: look at the samples"],
    broken.InfiniteGradient: ["the gradient of 0.weight, 0.bias, 2.weight and 1 more is not finite"],
    broken.Functional: ["F.dropout draws from torch's global generator; use torch.nn.Dropout in the model"],
    broken.Noise: ["loss()", "torch.randn_like draws from torch's global generator"],
    broken.NumpyNoise: ["`scale = np.random.uniform(0.5, 1.5)", "draws from numpy's global generator"],
    broken.PythonNoise: ["`if random.random() < 2:", "draws from Python's global generator"],
    broken.DropsLayers: ["torch.rand draws from torch's global generator"],
    broken.Counts: ["another loss of samples 0, 1, 2 and 1 more at a second time", "counts calls"],
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
}


def named_line(kind: type) -> int:
    """Return the line of a class, or of a module that its model has, that ends with the comment HERE."""
    for thing in (kind, broken.LayerDrop):
        lines, first = inspect.getsourcelines(thing)
        for place, line in enumerate(lines, start=first):
            if line.rstrip().endswith("# HERE"):
                return place
    raise AssertionError(kind)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # by torch.compile's own imports
@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_a_mistake_is_told_once_with_file_and_line(kind: type[broken.Right]) -> None:
    with pytest.raises(OwnCodeError) as caught:
        first_check(kind(), SETTING)
    told = str(caught.value).splitlines()
    assert len(told) == 1, told
    sentence = told[0]
    assert sentence.startswith("my.py:Mine: ")
    assert f"{FILE}, line {named_line(kind)}:" in sentence
    assert [words for words in MISTAKES[kind] if words not in sentence] == []


def test_every_broken_task_is_in_the_table() -> None:
    kinds = {each for each in vars(broken).values() if isinstance(each, type) and issubclass(each, broken.Right)}
    assert kinds - {broken.Right} == {*MISTAKES}
