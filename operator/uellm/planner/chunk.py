"""The engine's chunk: --max-num-batched-tokens from the tightest TPOT and the step-time model.

vLLM fills a step with one token of each running sequence first and with prompts up to the chunk B. In a saturated
engine every step is full, and each request brings p prompt tokens and takes o steps; so n sequences run with

    n = min(B * o / (p + o), max_num_seqs, KV tokens / (p + o / 2)),    prefill a step  a = min(B - n, n * p / o)
    TPOT = step(a, n * (p + o / 2), n),                                 requests/s      = n / (o * TPOT)

(Little's law for n; the same balance as Sarathi-Serve's "decode-maximal batching", arXiv 2403.02310, section 4).
Throughput hardly depends on B above some hundred tokens, while TPOT grows with it: 512 instead of 8,192 took plain EDF
from .345 to .808 attainment on one trace. But a small B starves prompts while many sequences decode, so the rule is the
*largest* chunk whose full step stays within a share of the tightest TPOT. It never falls under what a step's floor
computes for nothing, beside the sequences that decode.
"""

from __future__ import annotations

from dataclasses import dataclass

from uellm.planner import constants as c
from uellm.planner.steptime import StepTime


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of a step, and in words why."""

    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Saturation:
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


def saturation(step: StepTime, load: Load, chunk: int) -> Saturation:
    """The balance of the module's docstring. Seconds and requests a second."""
    p, o = load.prompt_tokens, load.output_tokens
    running = max(1.0, min(chunk * o / (p + o), load.most_sequences()))
    prefill = max(0.0, min(chunk - running, running * p / o))
    tpot = step.step_s(prefill, running * load.held_tokens, running)
    return Saturation(running, prefill, tpot, running / (o * tpot))


def best_chunk(
    step: StepTime,
    *,
    tpot_s: float | None,
    ttft_s: float | None = None,
    prompt_tokens: int,
    output_tokens: int,
    sequences: int,
    kv_tokens: int,
) -> Chunk:
    """The chunk for an engine and its load.

    `tpot_s`, `ttft_s`: the tightest targets, None where there is none. `prompt_tokens`, `output_tokens`: of a mean
    request. `sequences`, `kv_tokens`: the engine's limits (max_num_seqs; tokens that the KV cache holds).
    """
    load = Load(max(1, prompt_tokens), max(1, output_tokens), max(1, sequences), max(1, kv_tokens))
    tokens, reason = (
        (c.CHUNK_WITHOUT_TPOT, "no class has a TPOT target") if tpot_s is None else _paced(step, load, tpot_s)
    )
    first = _first_token_s(step, load, tokens)
    if ttft_s is not None and first > ttft_s:
        reason += f"; a mean prompt then takes {first:.2g} s, longer than the tightest TTFT of {ttft_s:g} s"
    return Chunk(tokens, reason)


def _paced(step: StepTime, load: Load, tpot_s: float) -> tuple[int, str]:
    """The largest chunk whose full step keeps to the target's share, and why."""
    running = {tokens: saturation(step, load, tokens).sequences for tokens in c.CHUNKS}
    # Less than the floor's worth of prompt in a full step leaves the engine's matrices idle.
    useful = [tokens for tokens in c.CHUNKS if tokens - running[tokens] >= step.floor_tokens] or list(c.CHUNKS[-1:])
    within = [tokens for tokens in useful if _full_step_s(step, load, tokens) <= c.CHUNK_TPOT_SHARE * tpot_s]
    tokens = max(within, default=useful[0])
    reason = (
        f"a full step beside {running[tokens]:.0f} running requests takes "
        f"{_full_step_s(step, load, tokens) * 1e3:.3g} ms of the tightest TPOT of {tpot_s * 1e3:.3g} ms"
    )
    return tokens, reason if within else f"{reason}, and fewer tokens would not use the engine"


def _full_step_s(step: StepTime, load: Load, chunk: int) -> float:
    """Seconds of a step that carries as much of a prompt as the chunk has room for beside the expected sequences."""
    running = saturation(step, load, chunk).sequences
    return step.step_s(max(0.0, chunk - running), running * load.held_tokens, running)


def _first_token_s(step: StepTime, load: Load, chunk: int) -> float:
    """Seconds of a mean prompt's steps beside the expected sequences, no other prompt waiting."""
    room = max(1.0, chunk - saturation(step, load, chunk).sequences)
    return _full_step_s(step, load, chunk) * load.prompt_tokens / min(room, float(load.prompt_tokens))
