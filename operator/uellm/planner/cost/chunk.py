"""The engine's chunk: --max-num-batched-tokens from the targets and the step-time model.

vLLM fills a step with one token of each running sequence first, and then with prompts up to the chunk B. In a saturated
engine every step is full. Each request brings p prompt tokens and takes o steps, so n sequences run:

    n = min(B * o / (p + o), max_num_seqs, KV tokens / (p + o / 2)),    prefill per step  a = min(B - n, n * p / o)
    TPOT = step(a, n * (p + o / 2), n),                                 requests/s        = n / (o * TPOT)

(Little's law for n; the same balance as Sarathi-Serve's "decode-maximal batching", arXiv 2403.02310, section 4).
Throughput grows with B, because fewer steps pay the floor and the overhead. Above some hundred tokens it hardly grows,
and every token of every answer waits for a full step. So the chosen chunk has the most requests *on time* per second:
requests/s times the share of requests that meet their targets if every step is full,

    TPOT    all if the step takes at most a share of the target, fewer up to the target, none above it
    E2E     1 - exp(-(E2E - TTFT) / (step * o)): the answers that are short enough, if lengths are exponential

averaged over the classes with equal weights, because their traffic is unknown. With TPOT targets only, that is the
largest chunk within the share. End-to-end targets need smaller chunks. For example, if answers have 200 tokens on
average, one in seven has more than 390; at 26 ms per token, these miss a target of 10 s. In replays under overload, on
four traces and five engines, the chunk chosen this way had the highest attainment or up to .03 less. For the
conversations on engine-8b-h100.json it is 256 tokens, and attainment .880; the TPOT target of 60 ms alone would allow
512 tokens, with attainment .859.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from uellm.planner import constants as c
from uellm.planner.request import SloClass
from uellm.step_time import StepTime


@dataclass(frozen=True, slots=True)
class Chunk:
    """The chunk of an engine."""

    tokens: int
    """Per step."""
    reason: str
    """Why it has this size, as text."""


@dataclass(frozen=True, slots=True)
class SaturatedEngine:
    """The steady state of a saturated engine."""

    sequences: float
    """Running."""
    prefill_tokens: float
    """Prompt tokens per step."""
    tpot_s: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """A mean request and the engine's limits."""

    prompt_tokens: int
    output_tokens: int
    sequences: int
    """The engine's max_num_seqs."""
    kv_tokens: int
    """Size of the KV cache."""

    @property
    def held_tokens(self) -> float:
        """KV tokens that a running request holds on average."""
        return self.prompt_tokens + self.output_tokens / 2

    def most_sequences(self) -> float:
        """The most sequences that can run at the same time."""
        return max(1.0, min(float(self.sequences), self.kv_tokens / self.held_tokens))


def saturation(step: StepTime, load: Load, chunk: int) -> SaturatedEngine:
    """The steady state by the formulas of the module's docstring."""
    p, o = load.prompt_tokens, load.output_tokens
    running = max(1.0, min(chunk * o / (p + o), load.most_sequences()))
    prefill = max(0.0, min(chunk - running, running * p / o))
    tpot = step.step_s(prefill, running * load.held_tokens, running)
    return SaturatedEngine(running, prefill, tpot, running / (o * tpot))


def best_chunk(
    step: StepTime,
    *,
    classes: Sequence[SloClass],
    prompt_tokens: int,
    output_tokens: int,
    sequences: int,
    kv_tokens: int,
) -> Chunk:
    """The chunk for an engine and its load.

    `prompt_tokens`, `output_tokens`: of a mean request. `sequences`, `kv_tokens`: the engine's limits (max_num_seqs;
    tokens that the KV cache holds).
    """
    load = Load(max(1, prompt_tokens), max(1, output_tokens), max(1, sequences), max(1, kv_tokens))
    if all(each.tpot_s is None and each.e2e_s is None for each in classes):
        tokens, reason = c.CHUNK_WITHOUT_PACE, "no class has a TPOT or E2E target"
    else:
        tokens, reason = _paced(step, load, classes)
    first = _first_token_s(step, load, tokens)
    ttft_s = min((each.ttft_s for each in classes if each.ttft_s is not None), default=None)
    if ttft_s is not None and first > ttft_s:
        reason += f"; a mean prompt then takes {first:.2g} s, longer than the tightest TTFT of {ttft_s:g} s"
    return Chunk(tokens, reason)


def _paced(step: StepTime, load: Load, classes: Sequence[SloClass]) -> tuple[int, str]:
    """The chunk with the most requests on time per second, and the reason as text."""
    rates = {tokens: saturation(step, load, tokens).requests_per_s for tokens in c.CHUNKS}
    on_time = {tokens: _on_time(_full_step_s(step, load, tokens), load, classes) for tokens in c.CHUNKS}
    tokens = max(c.CHUNKS, key=lambda tokens: (rates[tokens] * on_time[tokens], tokens))
    if hopeless := on_time[tokens] == 0.0:
        tokens = _least_useful(step, load)
    why = f"a full step beside {saturation(step, load, tokens).sequences:.0f} running requests takes "
    why += f"{_full_step_s(step, load, tokens) * 1e3:.3g} ms"
    tpot_s = min((each.tpot_s for each in classes if each.tpot_s is not None), default=None)
    if tpot_s is not None:
        why += f" of the tightest TPOT of {tpot_s * 1e3:.3g} ms"
    if hopeless:
        return tokens, f"{why}, and a smaller chunk would leave the engine idle"
    return tokens, f"{why}; saturated, {rates[tokens]:.3g} requests/s and {on_time[tokens]:.0%} of them on time"


def _on_time(step_s: float, load: Load, classes: Sequence[SloClass]) -> float:
    """The share of requests, 0 to 1, that meet their targets if every token takes `step_s`; without waiting."""
    return fmean(_class_on_time(step_s, load, each) for each in classes)


def _class_on_time(step_s: float, load: Load, targets: SloClass) -> float:
    share = 1.0 if targets.tpot_s is None else _within(step_s, targets.tpot_s)
    if targets.e2e_s is None:
        return share
    answer_s = max(0.0, targets.e2e_s - (targets.ttft_s or 0.0))
    return min(share, -math.expm1(-answer_s / (step_s * load.output_tokens)))


def _within(step_s: float, tpot_s: float) -> float:
    """The share of answers with at most `tpot_s` per token.

    The square between the safe share of the target and the target is a guess. A sharp limit would be wrong: an engine
    whose sequences alone take the whole target would lose much throughput with smaller steps, and gain little time.
    """
    return 0.0 if step_s > tpot_s else min(1.0, c.CHUNK_TPOT_SHARE * tpot_s / step_s) ** 2


def _least_useful(step: StepTime, load: Load) -> int:
    """The smallest chunk with enough prompt tokens that computing them takes as long as the step's floor."""
    useful = (tokens for tokens in c.CHUNKS if tokens - saturation(step, load, tokens).sequences >= step.floor_tokens)
    return next(useful, c.CHUNKS[-1])


def _full_step_s(step: StepTime, load: Load, chunk: int) -> float:
    """Seconds of a step with the expected sequences and as many prompt tokens as the chunk has room for."""
    running = saturation(step, load, chunk).sequences
    return step.step_s(max(0.0, chunk - running), running * load.held_tokens, running)


def _first_token_s(step: StepTime, load: Load, chunk: int) -> float:
    """Seconds to compute a mean prompt beside the expected sequences, if no other prompt waits."""
    room = max(1.0, chunk - saturation(step, load, chunk).sequences)
    return _full_step_s(step, load, chunk) * load.prompt_tokens / min(room, float(load.prompt_tokens))
