"""Replay: the check of a gradient that is cheaper than the gradient.

A worker records the matrix products and convolutions of its computation. The checker runs the same computation, takes
each product from that transcript after Freivalds' check with a fresh secret vector, and computes all else itself. So
nothing that a worker says is believed, and no other worker is needed.

Sources: Freivalds, Probabilistic machines can use less running time, IFIP 1977; for neural networks, Tramèr & Boneh,
Slalom, arXiv:1806.03287.
"""

from draco.replay.checking import replay
from draco.replay.recording import record
from draco.replay.verdict import CheatError, Verdict

__all__ = ["CheatError", "Verdict", "record", "replay"]
