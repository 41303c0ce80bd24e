"""The job spec: one YAML file becomes one frozen `Job`, or a `JobError` that lists every fault at once.

Nothing downstream checks these values again. Pure: no files, no MPI, and torch only inside the checks that ask the
tables of models and schemes.

    fields -> numbers, messages -> checks -> reading        fields -> writing
"""

from draco.job.checks import check, warnings
from draco.job.fields import ORIGINAL_OPTIONS, Job, applies_to
from draco.job.numbers import (
    DESIGNED,
    FALLIBLE,
    aggregator_f,
    decoded,
    keeps_rows,
    liars,
    partitions,
    structure,
    total_steps,
)
from draco.job.reading import parse
from draco.job.writing import schema, to_dict, to_words, to_yaml

__all__ = [
    "DESIGNED", "FALLIBLE", "ORIGINAL_OPTIONS", "Job", "aggregator_f", "applies_to", "check", "decoded", "keeps_rows",
    "liars", "parse", "partitions", "schema", "structure", "to_dict", "to_words", "to_yaml", "total_steps", "warnings",
]  # fmt: skip
