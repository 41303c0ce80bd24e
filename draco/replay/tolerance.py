"""What the check of products lets pass: the default tolerance, chances, and what errors within it do to a gradient.

An error's size is relative to the scale of its row, which `draco/replay/residual.py` defines. Proofs and measured
figures are in docs/checked.md; `benchmarks/tolerance.py` prints the figures.
"""

import math

ROUNDING = 2.0**-23  # of float32, relative: the distance from 1 to the next number
LEAST = 1e-5  # the tolerance of products with an inner length below 7,000


def default_tolerance(inner: int) -> float:
    """Return the tolerance of a product whose numbers are sums of `inner` terms.

    Rounding of a sum that is built term by term grows as the root of its length. So the tolerance is
    max(1e-5, 2^-23 sqrt(inner)). Whole rows of honest products erred by 1/4 of it or less on all kernels measured.

    Raises:
        ValueError: the length is negative.
    """
    if inner < 0:
        raise ValueError(f"a sum of {inner} terms; give 0 or more")
    return max(LEAST, ROUNDING * math.sqrt(inner))


def passes_with_probability(error: float, tolerance: float, vectors: int = 1) -> float:
    """Return an upper bound of the chance that a row with an error passes its check with Gaussian vectors.

    With t = tolerance / error < 1 it is 1.3 t sqrt(1 + 2 ln(4 / t)) for one vector (statement 2 of docs/checked.md).
    Where `vectors` independent ones must all pass it is a power of that.

    Args:
        error: of the row, relative to its scale.
        tolerance: of the check.
        vectors: independent secret vectors.

    Raises:
        ValueError: a number is out of its range.
    """
    if not (error >= 0 and tolerance > 0 and vectors >= 1):
        raise ValueError(
            f"error {error}, tolerance {tolerance}, vectors {vectors}; give an error of 0 or more, a tolerance above "
            "0, and at least 1 vector"
        )
    if error <= tolerance:
        return 1.0
    t = tolerance / error
    if t == 0:
        return 0.0
    return min(1.0, 1.3 * t * math.sqrt(1 + 2 * math.log(4 / t))) ** vectors
