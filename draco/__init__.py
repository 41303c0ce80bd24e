"""Draco: Byzantine-resilient distributed training with redundant gradients (arXiv:1803.09877)."""

__version__ = "0.1.0"
