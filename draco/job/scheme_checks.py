"""Does the scheme go together with its workers, batch, messages, aggregator, and with what is each worker's own?"""

from collections.abc import Iterator

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.declaration import OptionError
from draco.job.fault import SIZES, Fault, option_path
from draco.job.fields import Job
from draco.job.messages import legal_values, properties
from draco.job.numbers import aggregator_f, in_rounds, sizes, structure
from draco.job.sections import DataSection
from draco.models import MODELS
from draco.schemes import SCHEMES


def of_scheme(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in n, s, the scheme's options, B and the aggregator."""
    name, n, s = job.scheme.name, job.workers, job.scheme.adversaries
    scheme, needed = SCHEMES[name], SCHEMES[name].least(s, structure(job))
    about = (*SIZES, *(f"scheme.{option}" for option in scheme.options))
    if job.wire.dtype != "float32" and scheme.dtype != "float32":
        message = f"{name}'s replies are {scheme.dtype}, which {job.wire.dtype} cannot carry: must be float32"
        yield Fault("wire.dtype", message, ("scheme.name",))
    if job.wire.compression != "none" and in_rounds(job):
        message = f"{name} sends vectors and digests in one message: must be none, got {job.wire.compression}"
        yield Fault("wire.compression", message, ("scheme.name", "scheme.uplink"))
    if scheme.replays:
        yield from _of_replay(job)
    if needed > n:
        yield Fault("scheme.adversaries", f"{s} needs at least {needed} workers, got {n}", SIZES[:2])
        return
    try:
        k = sizes(job).partitions
    except OptionError as e:
        yield Fault(option_path(job, "scheme", e.option), e.message, about)
        return
    except ValueError as e:
        yield Fault("scheme.name", str(e), about)
        return
    per = 2 if job.model is not None and MODELS[job.model].batch_norm else 1
    if job.batch_size < per * k:
        why = f" and {job.model}'s batch norm at least 2 samples in each" if per == 2 else ""
        message = f"must be at least {per * k}: {name} cuts it into {k} partitions{why}, got {job.batch_size}"
        yield Fault("batch_size", message, (*about, "model"))
    yield from _of_aggregator(job)


def _of_aggregator(job: Job) -> Iterator[Fault]:
    """Yield why the decoded gradients are not what the aggregator, or something before it, can work with."""
    spec, rule, m, f = job.aggregator, AGGREGATORS[job.aggregator.name], sizes(job).gradients, aggregator_f(job)
    about = (*SIZES, "aggregator.f", "aggregator.pre")
    left = f"{job.scheme.name} leaves {m} of {job.workers} workers' replies"
    for step in spec.pre:
        pre = PRE_AGGREGATORS[step.name]
        if m < (needed := pre.least(f)):
            yield Fault("aggregator.pre", f"{step.name} with f = {f} needs at least {needed} gradients, {left}", about)
            return
        if (fewer := pre.remaining(m, step.given())) < m:
            m, left = fewer, f"{left} and {step.name} {fewer}"
    if m < (needed := rule.least(f)):
        yield Fault("aggregator.name", f"{spec.name} with f = {f} needs at least {needed} gradients, {left}", about)
        return
    for option, message in rule.faults(m, f, spec.given()):
        yield Fault(option_path(job, "aggregator", option), message, (*about, "aggregator.name"))
    if rule.trusts:
        if not SCHEMES[job.scheme.name].individual or spec.pre:
            message = (
                f"{spec.name} trusts the gradient of one worker: it needs scheme: uncoded and nothing in aggregator.pre"
            )
            yield Fault("aggregator.name", message, ("scheme.name", "aggregator.pre"))
        if (trusted := spec.get("trusted")) > job.workers:
            message = f"must be one of {job.workers} workers, got {trusted}"
            yield Fault(option_path(job, "aggregator", "trusted"), message, ("workers",))


def _of_replay(job: Job) -> Iterator[Fault]:
    """Yield what a server that replays cannot check."""
    name = job.scheme.name
    if job.autocast.dtype != "none":
        message = f"{name} takes products in float32: must be none, got {job.autocast.dtype}"
        yield Fault("autocast.dtype", message, ("scheme.name",))
    if job.device != "cpu":
        yield Fault("device", f"{name} replays on the server's CPU: must be cpu, got {job.device}", ("scheme.name",))
    if job.precision != "float32":
        message = f"{name} replays products in float32: must be float32, got {job.precision}"
        yield Fault("precision", message, ("scheme.name",))


def of_repeating(job: Job) -> Iterator[Fault]:
    """Yield what compares bits where GPUs need not repeat theirs."""
    if job.device == "cpu" or job.deterministic:
        return
    if SCHEMES[job.scheme.name].expels:
        message = (
            f"{job.scheme.name} expels who sends other bits, and GPUs repeat theirs only if it is true: leave it "
            "out, or take a scheme that votes within a tolerance, such as repetition"
        )
        yield Fault("deterministic", message, ("scheme.name", "device"))
    elif job.scheme.get("vote") == "exact":
        message = "compares bits, and GPUs repeat theirs only with deterministic: true: must be auto or tolerance"
        yield Fault("scheme.vote", message, ("deterministic", "device"))


def of_each_worker(job: Job) -> Iterator[Fault]:
    """Yield what does not go together where workers have samples or momentum of their own."""
    data, local, scheme = job.data, job.local, job.scheme.name
    individual = SCHEMES[scheme].individual
    if data.split == "dirichlet" and data.alpha is None:
        legal = legal_values("alpha", properties(DataSection)["alpha"]).removesuffix(", or null")
        yield Fault("data.alpha", f"is missing; dirichlet needs {legal}", ("data.split",))
    if not individual:
        common = f"{scheme} encodes gradients of partitions that all workers share"
        own = {"local.momentum": local.momentum > 0, "local.clip": local.clip is not None}
        if data.split != "iid":
            yield Fault("data.split", f"{common}: must be iid, or the scheme uncoded", ("scheme.name",))
        for path in (path for path, given in own.items() if given):
            yield Fault(path, f"{common}: leave it out, or the scheme must be uncoded", ("scheme.name",))
    if local.momentum and job.wire.dtype != "float32":
        message = (
            f"checkpoints keep worker momentum as it was received, and {job.wire.dtype} rounds it: must be float32"
        )
        yield Fault("wire.dtype", message, ("local.momentum",))
