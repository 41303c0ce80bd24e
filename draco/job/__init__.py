"""The job spec: one YAML file becomes one frozen `Job`, or a `JobError` that lists every fault at once.

Nothing downstream checks these values again. Pure: no files, no MPI, and no torch (`draco.lazy`).

    unions -> sections, named_sections -> fields -> numbers, messages -> fault -> *_checks, doubts -> checks -> reading
    fields -> writing
"""

from draco.job.checks import check, warnings
from draco.job.fields import Job, LauncherName
from draco.job.numbers import (
    aggregator_f,
    attack,
    byzantine_count,
    keeps_rows,
    sizes,
    structure,
    total_steps,
    transport,
)
from draco.job.reading import parse
from draco.job.writing import schema, to_dict, to_words, to_yaml

__all__ = [
    "Job", "LauncherName", "aggregator_f", "attack", "byzantine_count", "check", "keeps_rows", "parse", "schema",
    "sizes", "structure", "to_dict", "to_words", "to_yaml", "total_steps", "transport", "warnings",
]  # fmt: skip
