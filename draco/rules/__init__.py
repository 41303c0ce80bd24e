"""The rules as a user of the library calls them: `draco.aggregate(x, "krum", f=2)`, or `draco.Krum(f=2)(x)`.

What comes out is of the kind that went in (`draco.given.of_its_kind`). The trainer calls `draco.aggregators` itself.

rule.py              what all classes share; `aggregate`
aggregators.py       a class an aggregator
pre_aggregators.py   a class a pre-aggregator
"""

from draco.rules.aggregators import (
    CAF,
    CGE,
    MDA,
    SMEA,
    Bulyan,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Meamed,
    Mean,
    Median,
    MedianOfMeans,
    MoNNA,
    MultiKrum,
    SignMajority,
    TrimmedMean,
)
from draco.rules.pre_aggregators import ARC, NNM, Bucketing, Clipping
from draco.rules.rule import PreRule, Rule, aggregate

__all__ = [
    "ARC",
    "CAF",
    "CGE",
    "MDA",
    "NNM",
    "SMEA",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clipping",
    "GeometricMedian",
    "Krum",
    "Meamed",
    "Mean",
    "Median",
    "MedianOfMeans",
    "MoNNA",
    "MultiKrum",
    "PreRule",
    "Rule",
    "SignMajority",
    "TrimmedMean",
    "aggregate",
]
