"""Reads the metrics that vLLM exposes. Pure.

Metric names changed between vLLM versions; old and new ones are read. An engine with several data-parallel ranks labels
the metrics of each rank; they are summed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

from uellm.sidecar.scheduling import EngineSteps

_LINE = re.compile(r"^(vllm:[a-zA-Z_]+)(?:\{(.*)\})? ([^ ]+)(?: \d+)?$")
_LABEL = re.compile(r'([a-zA-Z_]+)="((?:[^"\\]|\\.)*)"')

RUNNING = ("vllm:num_requests_running",)
WAITING = ("vllm:num_requests_waiting",)
KV_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
PREEMPTIONS = ("vllm:num_preemptions_total", "vllm:num_preemptions")
PROGRESS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prompt_tokens", "vllm:generation_tokens")
ANSWER_TOKENS = ("vllm:generation_tokens_total", "vllm:generation_tokens")
PROMPTS = ("vllm:prompt_tokens_total", "vllm:prompt_tokens")
CACHED = (
    "vllm:prompt_tokens_cached_total",
    "vllm:prompt_tokens_cached",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_hits",
)
STEPS = ("vllm:iteration_tokens_total_count",)
GAPS_S = ("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum")
GAPS = ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count")
FIRST_TOKENS = ("vllm:time_to_first_token_seconds_count",)
CACHE = ("vllm:cache_config_info",)
_READ = (RUNNING, WAITING, KV_USED, PREEMPTIONS, PROGRESS, CACHED, STEPS, GAPS_S, GAPS, FIRST_TOKENS, CACHE)
NO_CACHE_BLOCKS = "1"
"""An engine whose model keeps no KV cache, such as BERT, reports the null block alone."""


@dataclass(frozen=True)
class EngineMetrics:
    """The engine's metrics; None: not exposed."""

    running: int
    waiting: int
    kv_used_share: float | None
    """Of the fullest rank, because it preempts first."""
    kv_tokens: int | None
    """Capacity of the KV cache, over all ranks; None also where the model keeps none."""
    block_tokens: int | None
    preemptions: int
    progress: tuple[float, ...]
    """Token counters and use of the KV cache, of each rank. One of them changes while the engine makes progress."""
    prompt_tokens: float | None
    cached_tokens: float | None
    """Prompt tokens that were found in the prefix cache; 0 without a prefix cache."""
    steps: EngineSteps | None


def read(text: str) -> EngineMetrics | None:
    """The metrics in a Prometheus exposition; None if it is not vLLM's."""
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for name, labels, value in _samples(text):
        found.setdefault(name, []).append((labels, value))

    def values(names: tuple[str, ...]) -> list[float]:
        return next(([value for _, value in found[name]] for name in names if name in found), [])

    if not values(RUNNING):
        return None
    blocks = [labels for labels, _ in found.get(CACHE[0], [])]
    prompts, cached, first = (_total(values(names)) for names in (PROMPTS, CACHED, FIRST_TOKENS))
    return EngineMetrics(
        running=int(sum(values(RUNNING))),
        waiting=int(sum(values(WAITING))),
        kv_used_share=max(values(KV_USED), default=None),
        kv_tokens=_kv_tokens(blocks),
        block_tokens=_whole(blocks[0].get("block_size")) if blocks else None,
        preemptions=int(sum(values(PREEMPTIONS))),
        progress=tuple([value for name in (*PROGRESS, *KV_USED) for _, value in found.get(name, [])]),
        prompt_tokens=prompts,
        cached_tokens=cached,
        steps=_steps([_total(values(names)) for names in (STEPS, GAPS_S, GAPS, ANSWER_TOKENS)], prompts, cached, first),
    )


def _steps(
    totals: list[float | None], prompts: float | None, cached: float | None, first: float | None
) -> EngineSteps | None:
    known = [total for total in (*totals, prompts, first) if total is not None]
    if len(known) < len(totals) + 2:
        return None
    number, gap_s, gaps, answer_tokens, prompt_tokens, first_tokens = known
    return EngineSteps(number, gap_s, gaps, prompt_tokens - (cached or 0.0), answer_tokens - first_tokens)


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    wanted = frozenset(name for names in _READ for name in names)
    for line in text.splitlines():
        # Most lines are histogram buckets: skip them before parsing.
        if not line.startswith("vllm:") or line.split("{", 1)[0].split(" ", 1)[0] not in wanted:
            continue
        match = _LINE.match(line)
        value = _number(match.group(3)) if match else None
        if match and value is not None:
            yield match.group(1), dict(_LABEL.findall(match.group(2) or "")), value


def _kv_tokens(ranks: list[Mapping[str, str]]) -> int | None:
    if any(labels.get("num_gpu_blocks") == NO_CACHE_BLOCKS for labels in ranks):
        return None
    sizes = [_whole(labels.get("kv_cache_size_tokens")) or _product(labels) for labels in ranks]
    known = [size for size in sizes if size]
    return sum(known) if known and len(known) == len(sizes) else None


def _product(labels: Mapping[str, str]) -> int | None:
    blocks, size = _whole(labels.get("num_gpu_blocks")), _whole(labels.get("block_size"))
    return blocks * size if blocks and size else None


def _whole(text: str | None) -> int | None:
    """A positive integer; vLLM writes `None` for values that it does not know yet."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 16 and int(text) > 0 else None


def _total(ranks: list[float]) -> float | None:
    return sum(ranks) if ranks else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None
