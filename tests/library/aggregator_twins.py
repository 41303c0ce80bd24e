"""Slow obvious twins of the aggregators, in float64, as their papers have them."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from draco.aggregators import AGGREGATORS


def rows_of(n: int, d: int, seed: int = 0, common: float = 0.0) -> Tensor:
    """Rows of a large common part and a spread of one."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=source) + common * torch.randn(d, generator=source)


def krum_scores_twin(rows: np.ndarray, neighbours: int) -> list[float]:
    """Blanchard et al. 2017, section 4, word by word in float64."""
    scores = []
    for i, row in enumerate(rows):
        others = sorted(((row - other) @ (row - other)) for j, other in enumerate(rows) if j != i)
        scores.append(sum(others[:neighbours]))
    return scores


def krum_twin(gradients: Tensor, f: int) -> int:
    return int(np.argmin(krum_scores_twin(gradients.double().numpy(), len(gradients) - f - 2)))


def median_twin(gradients: Tensor, f: int) -> np.ndarray:
    return np.median(gradients.double().numpy(), axis=0)


def trimmed_mean_twin(gradients: Tensor, f: int) -> np.ndarray:
    return np.sort(gradients.double().numpy(), axis=0)[f : len(gradients) - f].mean(0)


def meamed_twin(gradients: Tensor, f: int) -> np.ndarray:
    """Xie et al. 2018, by a loop; the distances are rounded as the gradients are, for that decides near ties."""
    found = []
    for column in gradients.numpy().T:
        order = np.lexsort((column, np.abs(column - np.median(column))))
        found.append(np.mean(column[order[: len(column) - f]], dtype=np.float64))
    return np.array(found)


def sign_majority_twin(gradients: Tensor, f: int) -> np.ndarray:
    found = []
    for column in gradients.T.tolist():
        up, down = sum(value > 0 for value in column), sum(value < 0 for value in column)
        found.append(1.0 if up > down else -1.0 if down > up else 0.0)
    return np.array(found)


def median_of_means_twin(gradients: Tensor, f: int) -> np.ndarray:
    groups = np.array_split(gradients.double().numpy(), 2 * f + 1)
    return geometric_median_twin(torch.from_numpy(np.stack([sum(group) / len(group) for group in groups])), f)


def geometric_median_twin(gradients: Tensor, f: int) -> np.ndarray:
    """Weiszfeld's iteration over d in float64."""
    rows = gradients.double().numpy()
    point = np.median(rows, axis=0)
    for _ in range(1000):
        weights = 1 / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-12)
        last, point = point, weights @ rows / weights.sum()
        if np.linalg.norm(point - last) <= 1e-12 * np.linalg.norm(point):
            break
    return point


def multi_krum_twin(gradients: Tensor, f: int) -> np.ndarray:
    rows = gradients.double().numpy()
    order = np.argsort(krum_scores_twin(rows, len(rows) - f - 2), kind="stable")
    return rows[order[: len(rows) - f]].mean(0)


def bulyan_twin(gradients: Tensor, f: int) -> np.ndarray:
    rows = list(gradients.double().numpy())
    theta = len(rows) - 2 * f
    selected = []
    while len(selected) < theta:
        fewest = max(len(rows) - f - 2, 1)
        scores = [krum_scores_twin(np.array(rows), count) for count in range(fewest, max(len(rows), fewest + 1))]
        selected.append(rows.pop(min(range(len(rows)), key=lambda row: [sums[row] for sums in scores])))
    values = np.sort(selected, axis=0)
    order = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0, kind="stable")
    return np.take_along_axis(values, order[: theta - 2 * f], axis=0).mean(0)


def first_least(n: int, f: int, score: Callable[[list[int]], float]) -> list[int]:
    """Return the first of the subsets of n - f rows with the least score, up to rounding: mixed rows may be equal."""
    subsets = [list(chosen) for chosen in itertools.combinations(range(n), n - f)]
    scores = np.array([score(chosen) for chosen in subsets])
    return subsets[int(np.argmax(scores <= scores.min() * (1 + 1e-9)))]


def mda_twin(gradients: Tensor, f: int) -> np.ndarray:
    rows = gradients.double().numpy()
    apart = np.array([[np.linalg.norm(a - b) for b in rows] for a in rows])
    return rows[first_least(len(rows), f, lambda chosen: apart[np.ix_(chosen, chosen)].max())].mean(0)


def smea_twin(gradients: Tensor, f: int) -> np.ndarray:
    rows = gradients.double().numpy()
    rows, shift = rows - rows[-1], rows[-1]
    inner = rows @ rows.T

    def greatest_eigenvalue(chosen: list[int]) -> float:
        k = len(chosen)
        centring = np.eye(k) - 1 / k
        return float(np.linalg.eigvalsh(centring @ inner[np.ix_(chosen, chosen)] @ centring)[-1])

    return rows[first_least(len(rows), f, greatest_eigenvalue)].mean(0) + shift


def caf_twin(gradients: Tensor, f: int) -> np.ndarray:
    """On the rows themselves, with the right singular vector of the weighted, centred rows."""
    rows = gradients.double().numpy()
    n = len(rows)
    left, least, best = np.ones(n), math.inf, rows.mean(0)
    while left.sum() > n - 2 * f:
        centre = left @ rows / left.sum()
        _, values, vectors = np.linalg.svd(np.sqrt(left / left.sum())[:, None] * (rows - centre), full_matrices=False)
        if values[0] < least:
            least, best = values[0], centre
        projections = ((rows - centre) @ vectors[0]) ** 2
        left = left * (1 - projections / projections[left > 0].max())
        left[left < 1e-9] = 0
    return best


def centered_clipping_twin(
    gradients: Tensor, f: int, tau: float = 100.0, iterations: int = 1, centre: Tensor | None = None
) -> np.ndarray:
    rows = gradients.double().numpy()
    point = np.zeros(rows.shape[1]) if centre is None else centre.double().numpy()
    for _ in range(iterations):
        steps = [(row - point) * min(1, tau / max(np.linalg.norm(row - point), 1e-300)) for row in rows]
        point = point + np.mean(steps, axis=0)
    return point


def nearest_twin(gradients: Tensor, f: int, point: np.ndarray) -> np.ndarray:
    rows = gradients.double().numpy()
    order = np.argsort([np.linalg.norm(row - point) for row in rows], kind="stable")
    return rows[order[: len(rows) - f]].mean(0)


def feasible(name: str, n: int, f: int) -> bool:
    """Say whether a twin that looks at every subset is done in reasonable time."""
    return name not in ("mda", "smea") or math.comb(n, f) < 2000


def most_f(name: str, n: int, f: int) -> int:
    """Return f, or the most that the rule tolerates among n rows."""
    return max(some for some in range(f + 1) if AGGREGATORS[name].least(some) <= n)


TWINS: dict[str, Callable[[Tensor, int], np.ndarray]] = {
    "mean": lambda gradients, f: gradients.double().numpy().mean(0),
    "median": median_twin,
    "trimmed_mean": trimmed_mean_twin,
    "meamed": meamed_twin,
    "sign_majority": sign_majority_twin,
    "median_of_means": median_of_means_twin,
    "geometric_median": geometric_median_twin,
    "krum": lambda gradients, f: gradients.double().numpy()[krum_twin(gradients, f)],
    "multi_krum": multi_krum_twin,
    "bulyan": bulyan_twin,
    "mda": mda_twin,
    "smea": smea_twin,
    "caf": caf_twin,
    "centered_clipping": centered_clipping_twin,
    "monna": lambda gradients, f: nearest_twin(gradients, f, gradients[0].double().numpy()),
    "cge": lambda gradients, f: nearest_twin(gradients, f, np.zeros(gradients.shape[1])),
}
