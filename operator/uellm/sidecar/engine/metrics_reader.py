"""The engine's own figures, read out of its metrics. Pure.

Names changed over vLLM's versions, so both the old and the new ones are read; an engine of several data-parallel ranks
tells each one's figures with a label, and they are added up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

_LINE = re.compile(r"^(vllm:[a-zA-Z_]+)(?:\{(.*)\})? ([^ ]+)(?: \d+)?$")
_LABEL = re.compile(r'([a-zA-Z_]+)="((?:[^"\\]|\\.)*)"')

RUNNING = ("vllm:num_requests_running",)
WAITING = ("vllm:num_requests_waiting",)
KV_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
PREEMPTIONS = ("vllm:num_preemptions_total", "vllm:num_preemptions")
PROGRESS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prompt_tokens", "vllm:generation_tokens")
PROMPTS = ("vllm:prompt_tokens_total", "vllm:prompt_tokens")
CACHED = (
    "vllm:prompt_tokens_cached_total",
    "vllm:prompt_tokens_cached",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_hits",
)
CACHE = ("vllm:cache_config_info",)


@dataclass(frozen=True)
class EngineMetrics:
    """What the engine tells of itself; None where it does not."""

    running: int
    waiting: int
    kv_used_share: float | None
    """Of the fullest rank, for that one preempts first."""
    kv_tokens: int | None
    """Tokens that the KV cache holds, over all ranks."""
    block_tokens: int | None
    preemptions: int
    progress_tokens: float
    """Prompt and output tokens since the engine's start: it moves while the engine does."""
    prompt_tokens: float | None
    cached_tokens: float | None
    """Of these prompt tokens, those that were in the prefix cache; 0 where there is none."""


def read(text: str) -> EngineMetrics | None:
    """The figures in an exposition of metrics; None where it is not vLLM's."""
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for name, labels, value in _samples(text):
        found.setdefault(name, []).append((labels, value))

    def values(names: tuple[str, ...]) -> list[float]:
        return next(([value for _, value in found[name]] for name in names if name in found), [])

    if not values(RUNNING):
        return None
    blocks = [labels for labels, _ in found.get(CACHE[0], [])]
    return EngineMetrics(
        running=int(sum(values(RUNNING))),
        waiting=int(sum(values(WAITING))),
        kv_used_share=max(values(KV_USED), default=None),
        kv_tokens=_kv_tokens(blocks),
        block_tokens=_whole(blocks[0].get("block_size")) if blocks else None,
        preemptions=int(sum(values(PREEMPTIONS))),
        progress_tokens=sum(value for name in PROGRESS for _, value in found.get(name, [])),
        prompt_tokens=_total(values(PROMPTS)),
        cached_tokens=_total(values(CACHED)),
    )


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    wanted = frozenset((*RUNNING, *WAITING, *KV_USED, *PREEMPTIONS, *PROGRESS, *CACHED, *CACHE))
    for line in text.splitlines():
        # Most lines are buckets of histograms: they are passed over before anything is parsed.
        if not line.startswith("vllm:") or line.split("{", 1)[0].split(" ", 1)[0] not in wanted:
            continue
        match = _LINE.match(line)
        value = _number(match.group(3)) if match else None
        if match and value is not None:
            yield match.group(1), dict(_LABEL.findall(match.group(2) or "")), value


def _kv_tokens(ranks: list[Mapping[str, str]]) -> int | None:
    sizes = [_whole(labels.get("kv_cache_size_tokens")) or _product(labels) for labels in ranks]
    known = [size for size in sizes if size]
    return sum(known) if known and len(known) == len(sizes) else None


def _product(labels: Mapping[str, str]) -> int | None:
    blocks, size = _whole(labels.get("num_gpu_blocks")), _whole(labels.get("block_size"))
    return blocks * size if blocks and size else None


def _whole(text: str | None) -> int | None:
    """A positive whole number; vLLM writes `None` for what it does not know yet."""
    return int(text) if text is not None and text.isdecimal() and len(text) < 16 and int(text) > 0 else None


def _total(ranks: list[float]) -> float | None:
    return sum(ranks) if ranks else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None
