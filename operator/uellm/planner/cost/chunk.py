"""The engine's chunk: --max-num-batched-tokens from the targets and the step-time model.

vLLM fills a step with one token of each running sequence first and with prompts up to the chunk B. In a saturated
engine every step is full, and each request brings p prompt tokens and takes o steps; so n sequences run with

    n = min(B * o / (p + o), max_num_seqs, KV tokens / (p + o / 2)),    prefill a step  a = min(B - n, n * p / o)
    TPOT = step(a, n * (p + o / 2), n),                                 requests/s      = n / (o * TPOT)

(Little's law for n; the same balance as Sarathi-Serve's "decode-maximal batching", arXiv 2403.02310, section 4).
Throughput grows with B, for fewer steps pay the floor and the overhead, but hardly above some hundred tokens, while
every token of every answer waits for a full step. So the rule is the most requests *on time* a second: requests/s times
the share of them that keep their targets when every step is full,

    TPOT    all while the step is within a share of the target, fewer up to the target, none beyond
    E2E     those short enough: 1 - exp(-(E2E - TTFT) / (step * o)), answers being spread as an exponential distribution

the classes counting alike, for nobody knows their traffic beforehand. With TPOT targets alone that is the largest chunk
within the share. End-to-end targets ask for smaller ones: of answers of 200 tokens on average a seventh has more than
390, which at 26 ms a token are late after 10 s. Under overload, on four traces and five engines, the chunk chosen so
had the most attainment in replays or up to .03 less; on the conversations that engine-8b-h100.json serves, 256
instead of the 512 that 60 ms a token alone would allow took it from .859 to .880.
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
    """Tokens of a step, and in words why."""

    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class SaturatedEngine:
    """A saturated engine: sequences that run, prompt tokens a step, and what comes of it."""

    sequences: float
    prefill_tokens: float
    tpot_s: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """A mean request in tokens, and the engine's limits: sequences at a time and tokens of KV cache."""

    prompt_tokens: int
    output_tokens: int
    sequences: int
    kv_tokens: int

    @property
    def held_tokens(self) -> float:
        """KV tokens that a running request holds on average."""
        return self.prompt_tokens + self.output_tokens / 2

    def most_sequences(self) -> float:
        """Sequences that run at a time at most."""
        return max(1.0, min(float(self.sequences), self.kv_tokens / self.held_tokens))


def saturation(step: StepTime, load: Load, chunk: int) -> SaturatedEngine:
    """The balance of the module's docstring. Seconds and requests a second."""
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
    """The chunk with the most requests on time a second, and why."""
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
    """The share of requests, 0 to 1, that keep their targets if every token takes a step; waiting left out."""
    return fmean(_class_on_time(step_s, load, each) for each in classes)


def _class_on_time(step_s: float, load: Load, targets: SloClass) -> float:
    share = 1.0 if targets.tpot_s is None else _within(step_s, targets.tpot_s)
    if targets.e2e_s is None:
        return share
    answer_s = max(0.0, targets.e2e_s - (targets.ttft_s or 0.0))
    return min(share, -math.expm1(-answer_s / (step_s * load.output_tokens)))


def _within(step_s: float, tpot_s: float) -> float:
    """The share of answers with at most `tpot_s` a token.

    Between the safe share of the target and the target the square is a guess. It is no cut, for an engine whose
    sequences alone fill the target would lose much throughput to smaller steps, and win hardly any time.
    """
    return 0.0 if step_s > tpot_s else min(1.0, c.CHUNK_TPOT_SHARE * tpot_s / step_s) ** 2


def _least_useful(step: StepTime, load: Load) -> int:
    """The smallest chunk that does not leave the engine's matrices idle: it holds the floor's worth of prompt."""
    useful = (tokens for tokens in c.CHUNKS if tokens - saturation(step, load, tokens).sequences >= step.floor_tokens)
    return next(useful, c.CHUNKS[-1])


def _full_step_s(step: StepTime, load: Load, chunk: int) -> float:
    """Seconds of a step that carries as much of a prompt as the chunk has room for beside the expected sequences."""
    running = saturation(step, load, chunk).sequences
    return step.step_s(max(0.0, chunk - running), running * load.held_tokens, running)


def _first_token_s(step: StepTime, load: Load, chunk: int) -> float:
    """Seconds of a mean prompt's steps beside the expected sequences, no other prompt waiting."""
    room = max(1.0, chunk - saturation(step, load, chunk).sequences)
    return _full_step_s(step, load, chunk) * load.prompt_tokens / min(room, float(load.prompt_tokens))
