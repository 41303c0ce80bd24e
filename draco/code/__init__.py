"""A job's own code on its way: found without being run, packed, recorded in the run, and put where workers read it.

imports.py    what one source file imports, and how surely
discovery.py  which files a job's own code consists of, and which installed packages it needs
selection.py  which files of a folder travel: no hidden ones, no keys, none that git ignores
gather.py     both together, for a job
pack.py       the files as one value, its digest, its form on the way, and its copy in a folder
recorded.py   the copy in a run: where it is, and how an evaluation loads from it
changes.py    what differs between two packs, as a diff
store.py      packs on a node, by their digests

draco/own.py imports the code. Nothing here does.
"""
