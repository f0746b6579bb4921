"""A replay's input: the request classes, and a trace's requests with class and predicted length.

The order of the steps is part of the contract, because the random numbers depend on it. The trace is filtered by length
and cut to the limit. Then each request, in order of arrival, draws its class from `random.Random(seed).random()`, and,
where the predictor is a noisy oracle, one Gaussian for the noise of the length prediction.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from uellm.api import ServiceClass
from uellm.errors import BadInput, CannotBeDone
from uellm.evaluate.traces import Trace
from uellm.sidecar.scheduling import Lengths, Targets

P80_GAUSSIAN = 0.84
"""The standard normal's 80th percentile, rounded as in the scenarios' definition."""

NOISY_ORACLE = "noisy-oracle"

ALL = "all"
"""Name of all classes together in figures by class."""


@dataclass(frozen=True, slots=True)
class RequestClass:
    """A class of requests: its targets, and its share of the trace, 0 to 1."""

    targets: Targets
    share: float

    @property
    def name(self) -> str:
        """The class's name."""
        return self.targets.name

    def met(self, arrival_s: float, first_token_s: float, end_s: float, output_tokens: int) -> bool:
        """Whether every target was met. An output of one token meets any TPOT."""
        targets = self.targets
        if targets.ttft_s is not None and first_token_s - arrival_s > targets.ttft_s:
            return False
        if targets.e2e_s is not None and end_s - arrival_s > targets.e2e_s:
            return False
        if targets.tpot_s is None or output_tokens <= 1:
            return True
        return (end_s - first_token_s) / (output_tokens - 1) <= targets.tpot_s


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes file. `sigma`: the noise of the length prediction; None: lengths are not predicted."""

    classes: tuple[RequestClass, ...]
    sigma: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request to replay. Times in seconds from the first arrival of the trace as recorded (speed 1)."""

    index: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    request_class: RequestClass
    client: str
    blocks: tuple[int, ...]
    lengths: Lengths | None


def read_classes(data: Any, where: str) -> Classes:
    """The classes of a parsed file such as scenarios/classes-mixed.yaml. Raises BadInput."""
    entries = data.get("classes") if isinstance(data, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise BadInput(f"{where}.classes", "must be a list of classes, each with a name, a share and targets")
    shares = [_share(entry, f"{where}.classes[{index}]", len(entries)) for index, entry in enumerate(entries)]
    total = math.fsum(shares)
    if total <= 0:
        raise BadInput(f"{where}.classes", "the shares add up to 0: give at least one class a share above 0")
    targets = [_targets(entry, f"{where}.classes[{index}]") for index, entry in enumerate(entries)]
    if len({target.name for target in targets}) < len(targets):
        raise BadInput(f"{where}.classes", "two classes have the same name")
    if any(target.name == ALL for target in targets):
        raise BadInput(f"{where}.classes", f"{ALL!r} is reserved for all classes together: give the class another name")
    classes = tuple(RequestClass(target, share / total) for target, share in zip(targets, shares, strict=True))
    return Classes(classes, _sigma(data.get("predictor"), f"{where}.predictor"))


def _share(entry: Any, where: str, count: int) -> float:
    share = entry.get("share", 1.0 / count) if isinstance(entry, Mapping) else None
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
        raise BadInput(f"{where}.share", f"must be a number of 0 or more, and is {share!r}")
    return float(share)


def _targets(entry: Mapping[str, Any], where: str) -> Targets:
    try:
        declared = ServiceClass.model_validate({key: value for key, value in entry.items() if key != "share"})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{where}.{field}" if field else where, first["msg"]) from error
    return Targets(
        declared.name,
        priority=declared.priority,
        ttft_s=declared.ttft_s,
        tpot_s=declared.tpot_s,
        e2e_s=declared.e2e_s,
        reject_late=declared.on_deadline == "Reject",
    )


def _sigma(predictor: Any, where: str) -> float | None:
    if predictor is None:
        return None
    kind = predictor.get("kind") if isinstance(predictor, Mapping) else None
    if kind == "none":
        return None
    if kind != NOISY_ORACLE:
        raise BadInput(f"{where}.kind", f"must be {NOISY_ORACLE!r} or 'none', and is {kind!r}")
    sigma = predictor.get("sigma", 0.0)
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 <= sigma < math.inf:
        raise BadInput(f"{where}.sigma", f"must be a number of 0 or more, and is {sigma!r}")
    return float(sigma)


def draw_jobs(trace: Trace, classes: Classes, *, seed: int, limit: int | None, max_tokens: int) -> list[Job]:
    """The requests to replay: the first `limit` of those with at most `max_tokens`, each with its class.

    Raises CannotBeDone where none is left.
    """
    kept = [request for request in trace.requests if request.prompt_tokens + request.output_tokens <= max_tokens]
    if not kept:
        raise CannotBeDone(f"{trace.name} has no request of at most {max_tokens} tokens: raise the limit on tokens")
    kept = kept[:limit]
    generator = random.Random(seed)
    start_s = kept[0].arrival_s
    jobs = []
    for index, request in enumerate(kept):
        request_class = _class_at(classes.classes, generator.random())
        lengths = _predicted(request.output_tokens, classes.sigma, generator)
        arrival_s = request.arrival_s - start_s
        sizes = request.prompt_tokens, request.output_tokens
        jobs.append(Job(index, arrival_s, *sizes, request_class, request.client, request.blocks, lengths))
    return jobs


def _class_at(classes: tuple[RequestClass, ...], drawn: float) -> RequestClass:
    end = 0.0
    for request_class in classes:
        end += request_class.share
        if drawn < end:
            return request_class
    # The sum of the shares may be below 1 by a rounding error.
    return classes[-1]


def _predicted(output_tokens: int, sigma: float | None, generator: random.Random) -> Lengths | None:
    if sigma is None:
        return None
    p50 = output_tokens * math.exp(generator.gauss(0.0, sigma))
    return Lengths(p50, p50 * math.exp(P80_GAUSSIAN * sigma))
