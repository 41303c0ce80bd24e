"""Protocols: steps in several rounds between server and workers, for exact gradients at less than 2s+1 copies.

A scheme takes one round: every worker replies once, and the server decodes. A protocol asks again where claims differ,
proves who lied, and expels them for the rest of the run. So redundancy is paid only while Byzantine workers behave.

rounds.py     what is asked of workers, what comes back, and the coroutine of rounds that a step is
dealing.py    who is asked for what, equally and unforeseen
court.py      claims, proofs and expulsions: who may still be asked, and how many may still lie
hearing.py    what has been claimed and sent of a step's pairs, who has lied, who is to be asked next
reactive.py   lies + 1 copies, one upload and digests; exact at every step
verification.py  of a step whose vectors were used: who verifies what, and what was false
odds.py       how probable it is that a lie survives that
verified.py   one copy, and verifiers who are drawn after the upload; a step is undone where they find a lie
checked.py    one copy, with the products of its matrix multiplications, which the server checks
sampled.py    the same of a secret part of the pairs, drawn after commitments
drawn.py      the same by workers who are drawn after the transcripts have come, and the server where they disagree
digested.py   the repetition code, with one upload a group and digests, or sketches for a vote within a tolerance
sketch.py     secret projections of vectors, by which distances are estimated; abreast.py: several coroutines as one

Coroutines are pure: no MPI, no files, no clock. `draco/training/rounds.py` drives them.
"""
