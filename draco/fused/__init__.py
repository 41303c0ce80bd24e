"""Kernels for GPUs that read each number once: what rules and decoders do there instead of a call for every operation.

A GPU's time goes into reading the n rows. A chain of torch's calls reads and writes memory at each of them; these
kernels keep what is between in registers. They are Triton's, which comes with torch's CUDA build, and are compiled at
their first call (a second or a few, kept on the disk by Triton). Where that cannot be done, the calls go on as before.

    source.py      a kernel is compiled and launched, or a warning says why not
    columns.py     (n, d) -> (d,) by a function of each column: sorting networks, signs
    writing.py     the source of such a function
    sums.py        (n, d) -> (k, d): weighted sums
    products.py    (n, d) -> inner products (m, m), squared distances (m,)
    rows.py        projections of rows, and whether rows have equal bits
    kernels.py     what is written in Triton by hand; imports it

Every function returns None where the kernel is not to be had: the caller then does the same in blocks.
Shapes: n rows, d columns, m chosen rows.
"""
