"""The load on a replica, from the workload and the targets. Every assumption is noted as a sentence.

Little's law (1961, doi:10.1287/opre.9.3.383): requests in flight = arrival rate * time in the system. The engine steps
all requests together, so they share one TPOT, and time in the system = TTFT + output tokens * TPOT. The pace is the
slowest that meets the targets, or the predicted, faster pace if the hardware is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from uellm.planner import constants as c
from uellm.planner.request import PlanRequest, SloClass


class RequestPace(NamedTuple):
    """How fast requests are served, in seconds."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """The load on one replica."""

    prompt_tokens: int
    """Mean."""
    output_tokens: int
    """Mean; 0: an embedder or a reranker, which writes none."""
    requests_per_s: float | None
    """None: the workload has no rate."""
    concurrency: float | None
    """Mean number of requests in flight."""
    service_concurrency: float | None
    """Mean number of requests in flight of the whole workload, at the slowest pace that meets the targets."""
    tpot_s: float | None
    """The tightest target; it may be derived from an end-to-end target."""
    ttft_s: float | None
    """The tightest target."""
    kv_tokens: int
    """The least number of tokens that the KV cache must hold."""
    assumptions: tuple[str, ...]
    """As sentences."""
    classes: tuple[SloClass, ...] = ()
    least_step_tokens: int = 0
    """A step holds at least these."""


def demand(request: PlanRequest, *, simulated: bool, share: int = 1, pace: RequestPace | None = None) -> Demand:
    """The demand on one of `share` replicas, which carries 1/`share` of the workload.

    It does not depend on `spec.replicas`: scaling a service must not change the shape of its replicas. `simulated`: the
    engine allocates on a CPU, so the KV cache is limited. `pace`: the predicted pace; None: that of the targets.
    """
    notes: list[str] = []
    if request.pools:
        return _pooling(request, notes, simulated=simulated, share=share, pace=pace)
    prompt, output = _tokens(request, notes)
    if request.task == "Transcribe":
        notes.append("the time of the encoder of speech is not in the predictions: they are those of the decoder")
    ttft, tpot = tightest(request, output)
    one = least_kv_tokens(request)
    rate = request.workload.requests_per_s
    if rate is None:
        notes.append(
            f"workload.requestsPerSecond is not given: sized for one request of maxModelLen {request.max_model_len} "
            "tokens at a time; more run as KV cache allows"
        )
        return Demand(
            prompt, output, None, None, None, tpot, ttft, one, tuple(notes), request.classes, request.least_step_tokens
        )
    slowest = _pace_of_targets(ttft, tpot, [] if pace else notes)
    in_all = rate * (slowest.ttft_s + output * slowest.tpot_s)
    rate /= share
    at_pace = pace or slowest
    concurrency = rate * (at_pace.ttft_s + output * at_pace.tpot_s)
    needed = max(one, _blocks(math.ceil(concurrency) * (prompt + output)))
    notes.append(
        f"{rate:g} requests/s{_of(share)} keep {concurrency:.1f} in flight at the "
        f"{'pace predicted' if pace else 'slowest pace allowed'} (Little's law), {prompt + output} tokens each: KV "
        f"cache for at least {needed} tokens"
    )
    if simulated:
        needed = _bounded_on_cpu(request, one, needed, notes)
    least = request.least_step_tokens
    return Demand(prompt, output, rate, concurrency, in_all, tpot, ttft, needed, tuple(notes), request.classes, least)


def _pooling(
    request: PlanRequest, notes: list[str], *, simulated: bool, share: int, pace: RequestPace | None
) -> Demand:
    """The demand on a replica that embeds or scores: prompts alone, and a target for the whole answer."""
    prompt = _prompt_tokens(request, notes)
    if prompt > request.max_model_len:
        prompt = request.max_model_len
        notes.append(f"prompts are cut to maxModelLen {prompt}")
    if request.workload.output_tokens_mean or request.workload.output_tokens_p95:
        notes.append(f"workload.outputTokens is ignored: a service with task {request.task} writes no tokens")
    if not request.architecture.kv_bytes_per_token:
        notes.append("the model keeps no KV cache: it attends in both directions, to a whole prompt in one step")
    ends = [end for each in request.classes for end in (each.ttft_s, each.e2e_s) if end is not None]
    target, one, rate = min(ends, default=None), least_kv_tokens(request), request.workload.requests_per_s
    classes, least = request.classes, request.least_step_tokens
    if rate is None:
        notes.append("workload.requestsPerSecond is not given: sized for one request at a time")
        return Demand(prompt, 0, None, None, None, None, target, one, tuple(notes), classes, least)
    slowest_s = c.ASSUMED_TTFT_S if target is None else target
    in_all, rate = rate * slowest_s, rate / share
    concurrency = rate * (pace.ttft_s if pace else slowest_s)
    needed = max(one, _blocks(math.ceil(concurrency) * prompt))
    notes.append(
        f"{rate:g} requests/s{_of(share)} keep {concurrency:.1f} in flight at the "
        f"{'pace predicted' if pace else 'slowest pace allowed'} (Little's law), {prompt} tokens each"
    )
    if simulated:
        needed = _bounded_on_cpu(request, one, needed, notes)
    return Demand(prompt, 0, rate, concurrency, in_all, None, target, needed, tuple(notes), classes, least)


def least_kv_tokens(request: PlanRequest) -> int:
    """Tokens of KV cache that one request of the greatest length needs."""
    return _blocks(request.max_model_len)


def tightest(request: PlanRequest, output_tokens: int) -> tuple[float | None, float | None]:
    """The tightest TTFT and TPOT of the classes. Without a TPOT target, it is (E2E - TTFT) / output tokens."""
    ttfts = [entry.ttft_s for entry in request.classes if entry.ttft_s is not None]
    tpots = [entry.tpot_s for entry in request.classes if entry.tpot_s is not None]
    tpots += [
        max(entry.e2e_s - (entry.ttft_s or 0.0), 0.0) / output_tokens
        for entry in request.classes
        if entry.e2e_s is not None and entry.tpot_s is None and entry.e2e_s > (entry.ttft_s or 0.0)
    ]
    return min(ttfts, default=None), min(tpots, default=None)


def _prompt_tokens(request: PlanRequest, notes: list[str]) -> int:
    load = request.workload
    if load.prompt_tokens_mean is not None:
        return load.prompt_tokens_mean
    prompt = load.prompt_tokens_p95 or c.ASSUMED_PROMPT_TOKENS
    notes.append(f"workload.promptTokens.mean is not given: {prompt} tokens are assumed")
    return prompt


def _tokens(request: PlanRequest, notes: list[str]) -> tuple[int, int]:
    load = request.workload
    prompt, output = _prompt_tokens(request, notes), load.output_tokens_mean
    if output is None:
        output = load.output_tokens_p95 or c.ASSUMED_OUTPUT_TOKENS
        notes.append(f"workload.outputTokens.mean is not given: {output} tokens are assumed")
    if prompt + output > request.max_model_len:
        # A request never holds more than the model's length, whatever the workload says.
        output = max(1, min(output, request.max_model_len // 2))
        prompt = max(1, min(prompt, request.max_model_len - output))
        notes.append(f"prompt and output are cut to maxModelLen {request.max_model_len}: {prompt} and {output} tokens")
    return prompt, output


def _pace_of_targets(ttft: float | None, tpot: float | None, notes: list[str]) -> RequestPace:
    """The slowest pace that meets the targets."""
    if tpot is None:
        tpot = c.ASSUMED_TPOT_S
        notes.append(f"no class has a TPOT or E2E target: {tpot * 1e3:g} ms a token are assumed for sizing")
    if ttft is None:
        ttft = c.ASSUMED_TTFT_S
        notes.append(f"no class has a TTFT target: {ttft:g} s are assumed for sizing")
    return RequestPace(ttft, tpot)


def _of(share: int) -> str:
    return " on one replica" if share == 1 else f" on each of {share} replicas"


def _blocks(tokens: int) -> int:
    """Tokens in whole blocks, with the block that the engine keeps for itself."""
    return (math.ceil(tokens / c.BLOCK_TOKENS) + 1) * c.BLOCK_TOKENS


def _bounded_on_cpu(request: PlanRequest, one: int, needed: int, notes: list[str]) -> int:
    each = request.architecture.kv_bytes_per_token
    most = max(one, c.CPU_KV_CACHE_BYTES // each) if each else needed
    if needed > most:
        notes.append(
            f"simulated GPUs: KV cache is limited to {most} tokens, because the CPU engine really allocates it "
            f"({c.CPU_KV_CACHE_BYTES >> 20} MiB)"
        )
    return min(needed, most)
