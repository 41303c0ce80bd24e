"""What is trained: the contract of a task, and the built-in one, the classification of images."""

from draco.tasks.task import Task, count

__all__ = ["Task", "count"]
