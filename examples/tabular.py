"""Regression on a table: how far diabetes will have progressed after a year, from ten measurements of a patient.

The table has 442 rows and is part of scikit-learn (load_diabetes; Efron, Hastie, Johnstone and Tibshirani, Least Angle
Regression, Annals of Statistics 2004). For a table of your own replace the one line that loads it.

    make train JOB=examples/tabular.yaml SIMULATE=1
"""

import torch
from sklearn.datasets import load_diabetes
from torch import nn

import draco


class Diabetes(draco.Task):
    """A network of one hidden layer; the loss of a patient is half the squared error of the scaled target."""

    def __init__(self, hidden: int = 32, held_out: float = 0.25) -> None:
        """Cut the table; `held_out` is the fraction of rows to test on."""
        self.hidden = hidden
        inputs, target = load_diabetes(return_X_y=True)
        x, y = torch.tensor(inputs, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)[:, None]
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the same rows in every process
        test, train = order.split([round(held_out * len(x)), len(x) - round(held_out * len(x))])
        x = (x - x[train].mean(0)) / x[train].std(0)  # scaled by what is seen in training
        self.unit = y[train].std()
        y = (y - y[train].mean()) / self.unit
        self.splits = {"train": (x[train], y[train]), "test": (x[test], y[test])}
        self.variance = y[test].var(correction=0)

    def model(self) -> nn.Module:
        """Return the network: 10 measurements to one number."""
        return nn.Sequential(nn.Linear(10, self.hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(self.hidden, 1))

    def samples(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return measurements (N, 10) and targets (N, 1)."""
        return self.splits[split]

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return half the squared error of each patient, (B,)."""
        x, y = batch
        return (model(x) - y).square().squeeze(1) / 2

    def evaluate(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the loss, the error in the table's unit, and a patient's share of R²: its mean over a split is R²."""
        loss = self.loss(model, batch)
        return {"loss": loss, "error": (2 * loss).sqrt() * self.unit, "r2": 1 - 2 * loss / self.variance}
