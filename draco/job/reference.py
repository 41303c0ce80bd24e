"""The reference of job files as a page of Markdown: every key, and everything that a key can name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.attacks import ATTACKS
from draco.data.datasets import DATASETS
from draco.declaration import Declaration
from draco.job.fields import PRE_AGGREGATOR, SECTIONS, Job
from draco.job.messages import legal_values, properties, show
from draco.job.sections import LoggerSection
from draco.job.unions import Part, Section, only_with
from draco.models import MODELS
from draco.optimizers import OPTIMIZERS, SCHEDULES
from draco.schemes import SCHEMES

TABLES: dict[str, Mapping[str, Declaration]] = {
    "scheme": SCHEMES,
    "aggregator": AGGREGATORS,
    "aggregator.pre": PRE_AGGREGATORS,
    "attack": ATTACKS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
# How many workers or gradients an entry of a table needs for so many Byzantine ones, options left out.
LEAST: dict[str, tuple[str, str, Callable[[Any, int], int]]] = {
    "scheme": ("s", "workers", lambda scheme, s: scheme.least(s, {})),
    "aggregator": ("f", "gradients", lambda rule, f: rule.least(f)),
    "aggregator.pre": ("f", "gradients", lambda rule, f: rule.least(f)),
}
_MISSING = "must be given"
INTRODUCTION = """\
# Reference of job files

`make schema` makes this page, and [jobs/schema.json](../jobs/schema.json) for editors, of the tables in the code. A job
is checked against the same: `make validate JOB=my.yaml` lists every fault. [library.md](library.md) says where schemes
and aggregators come from and how they compare; [tutorial.md](tutorial.md) begins with a job that runs.

A section can be given by its name where it needs no option: `scheme: cyclic` is short for `scheme: {name: cyclic}`.
`make train JOB=my.yaml SET="attack=random optimizer.lr=0.1"` overrides single values. How many workers or gradients a
name needs is said for options left out.

Letters: n workers, s Byzantine workers to tolerate, r redundancy, k partitions of a step's batch, m gradients after
decoding, f bad ones among them.
"""

_OWN = """\
A scheme, an aggregator, a pre-aggregator, an attack, an optimizer and a schedule can be your own
([extend.md](extend.md)). Its name is then a path, a file or a module and a name in it: `my_rules.py:trimmed_krum`,
`torch.optim:RMSprop`. Files are looked for from where the command is started. All that the code takes by name stands in
one mapping, `{name: my_rules.py:trimmed_krum, options: {keep: 3}}`, and is checked against what it takes. The section's
other options are those that are common to all. `SET="aggregator.options.keep=4"` overrides one option.
"""


def reference() -> str:
    """Return the page."""
    return "\n".join([INTRODUCTION, *_whole(), *_sections(), *_own(), *_models_and_data()])


def _whole() -> Iterator[str]:
    yield "## Keys of a job\n"
    yield from _table("key", "value", "default", "meaning", rows=map(_key, Job.model_fields))


def _key(key: str) -> list[str]:
    if key in SECTIONS:
        field = Job.model_fields[key]
        default = _MISSING if field.is_required() else _usual(key)
        return [f"`{key}`", f"[section](#{key})", default, field.description or ""]
    if key == "model":
        return [f"`{key}`", "[name](#models)", "null", Job.model_fields[key].description or ""]
    if key == "loggers":
        return [f"`{key}`", "list of [sections](#loggers)", "none", Job.model_fields[key].description or ""]
    return _option(Job, key)


def _usual(key: str) -> str:
    part = SECTIONS[key]
    if part.default:
        return f"`{part.default}`"
    if Job.model_fields[key].default is None:
        return "null"
    (kind,) = part.kinds.values()
    return f"`{part.short}: {_default(kind, part.short).strip('`')}`"


def _sections() -> Iterator[str]:
    for key, part in SECTIONS.items():
        yield from _section(key, part)
        if key == "aggregator":
            yield from _section("aggregator.pre", PRE_AGGREGATOR)
    yield from _section("loggers", Part("name", {"": LoggerSection}))


def _section(key: str, part: Part) -> Iterator[str]:
    last = [*part.kinds.values()][-1]
    about = last.__base__ if key in TABLES else last
    yield f"\n## {key}\n\n{about.__doc__ if about else ''}"
    if key not in TABLES:
        yield ""
        yield from _options(last, last.model_fields)
        return
    yield from _common(key, part)
    for name, entry in TABLES[key].items():
        yield from _entry(key, entry, part.kinds[name])


def _common(key: str, part: Part) -> Iterator[str]:
    """Yield the table of the options that do not belong to single names."""
    having: dict[str, list[str]] = {}
    for name, kind in part.kinds.items():
        own = TABLES[key][name].options
        for option in kind.model_fields:
            if option != "name" and option not in own:
                having.setdefault(option, []).append(name)
    if not having:
        return
    yield "\nOptions of all of them, unless it says otherwise:\n"
    rows = []
    for option, names in having.items():
        defaults: dict[str, list[str]] = {}
        for name in names:
            defaults.setdefault(_default(part.kinds[name], option), []).append(name)
        usual = max(defaults, key=lambda default: len(defaults[default]))
        said = [usual, *(f"{other} for {_names(of)}" for other, of in defaults.items() if other != usual)]
        shown, value, _, meaning = _option(part.kinds[names[0]], option)
        without = [name for name in part.kinds if name not in names]
        limited = f" Not for {_names(without)}." if without else ""
        rows.append([shown, value, "; ".join(said), meaning + limited])
    yield from _table("option", "value", "default", "meaning", rows=rows)


def _entry(key: str, entry: Declaration, kind: type[Section]) -> Iterator[str]:
    needs = ""
    if key in LEAST:
        letter, what, least = LEAST[key]
        number = least_rule(letter, lambda bad: least(entry, bad))
        needs = f" At least {number} {what if number != '1' else what.removesuffix('s')}."
    yield f"\n### {key}: {entry.name}\n\n{kind.__doc__}{needs}"
    if entry.options:
        yield ""
        yield from _options(kind, entry.options)


def _own() -> Iterator[str]:
    kind = PRE_AGGREGATOR.own
    assert kind is not None
    yield f"\n## Your own code\n\n{_OWN}"
    yield from _options(kind, ("name", "options"))


def least_rule(letter: str, least: Callable[[int], int]) -> str:
    """Return the rule that least numbers follow, `2f + 3`, or the first of them where they follow no line."""
    start, slope = least(0), least(1) - least(0)
    if any(least(bad) != start + slope * bad for bad in range(2, 10)):
        return f"{', '.join(str(least(bad)) for bad in range(4))} ... (for {letter} = 0, 1, 2, 3 ...)"
    if not slope:
        return str(start)
    return f"{slope if slope > 1 else ''}{letter}{f' + {start}' if start else ''}"


def _models_and_data() -> Iterator[str]:
    yield "\n## Models\n"
    rows = [
        [f"`{name}`", f"{model.smallest} x {model.smallest}", "yes" if model.batch_norm else "no"]
        for name, model in MODELS.items()
    ]
    yield from _table("`model`", "least image", "batch normalisation (2 samples in each partition)", rows=rows)
    yield "\n## Data sets\n"
    rows = [
        [
            f"`{name}`", " x ".join(map(str, info.shape)), str(info.classes), f"{info.train:,}", f"{info.test:,}",
            "yes" if info.augment else "no", info.source,
        ]
        for name, info in DATASETS.items()
    ]  # fmt: skip
    yield from _table("`data.name`", "image", "classes", "training", "test", "augmented", "source", rows=rows)


def _options(kind: type[Section], options: Iterable[str]) -> Iterator[str]:
    yield from _table("option", "value", "default", "meaning", rows=(_option(kind, option) for option in options))


def _option(kind: type[Section], option: str) -> list[str]:
    schema, needed = properties(kind)[option], only_with(kind, option)
    condition = f" Only with `{needed.option}` {' or '.join(needed.values)}." if needed else ""
    return [f"`{option}`", legal_values("", schema), _default(kind, option), schema["description"] + condition]


def _default(kind: type[Section], option: str) -> str:
    if kind.model_fields[option].is_required():
        return _MISSING
    value = properties(kind)[option].get("default")
    return f"`{value if isinstance(value, str) else show(value)}`"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(*head: str, rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
