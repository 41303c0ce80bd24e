"""The recomputation of a random part of a run, and what it says of the whole: `draco verify`."""
