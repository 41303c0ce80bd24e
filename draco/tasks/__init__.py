"""What is trained: the contract of a task, and the built-in one, which classifies images.

task (the contract) <- images (the built-in task), batch (what is done with batches)
"""

from draco.tasks.task import Task, count

__all__ = ["Task", "count"]
