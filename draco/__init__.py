"""Draco: Byzantine-resilient distributed training with redundant gradients (arXiv:1803.09877)."""

__version__ = "0.1.0"


def __getattr__(name):
    homes = {
        "run": "draco.experiment",
        "Run": "draco.experiment",
        "Interrupted": "draco.experiment",
        "Task": "draco.tasks",
    }
    if name not in homes:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(homes[name]), name)
