"""The rules as a user of the library calls them: `draco.aggregate(x, "krum", f=2)`, or `draco.Krum(f=2)(x)`.

What comes out is of the kind that went in (`draco.given.of_its_kind`). The trainer calls `draco.aggregators` itself.

rule.py              what all classes share; `aggregate`
aggregators.py       a class an aggregator
pre_aggregators.py   a class a pre-aggregator
"""
