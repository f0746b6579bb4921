"""A trace of conversations in Mooncake's form: each turn's prompt is the whole conversation so far.

A conversation begins with one of a few system prompts, some far more common than others. Its turns follow each other
after the answer and a pause. Lengths are lognormal, as those of public chat traces are about. Blocks are of 512 tokens,
and equal ids mean equal prefixes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 512


@dataclass(frozen=True)
class Conversations:
    """What the conversations are like. Lengths are (mean, standard deviation) of the logarithm of tokens."""

    seed: int = 1
    seconds: float = 900.0
    per_second: float = 0.9
    turns: float = 5.0
    """Mean number of turns."""
    pause_s: float = 25.0
    """Mean time from an answer to the next question."""
    system_prompts: int = 8
    system_tokens: tuple[int, int] = (256, 3000)
    first: tuple[float, float] = (6.0, 1.2)
    question: tuple[float, float] = (5.0, 0.9)
    answer: tuple[float, float] = (5.0, 0.8)
    most_tokens: int = 11_000
    """A conversation ends before its prompt is longer."""
    most_answer: int = 600
    token_s: float = 0.03
    """Seconds for each token of an answer, before the next question."""

    def rows(self) -> list[dict[str, Any]]:
        """The requests by arrival."""
        draw, ids = random.Random(self.seed), count()
        prompts = []
        for _ in range(self.system_prompts):
            tokens = draw.randint(*self.system_tokens)
            prompts.append((tokens, [next(ids) for _ in range(tokens // BLOCK_TOKENS)]))
        shares = [1.0 / (rank + 1) for rank in range(self.system_prompts)]
        at_s, rows = 0.0, []
        while (at_s := at_s + draw.expovariate(self.per_second)) < self.seconds:
            tokens, blocks = draw.choices(prompts, shares)[0]
            rows += self._turns(draw, ids, at_s, tokens, list(blocks))
        return sorted(rows, key=lambda row: row["timestamp"])

    def write(self, path: Path) -> Path:
        """Write the trace."""
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows()))
        return path

    def _turns(
        self, draw: random.Random, ids: Iterator[int], at_s: float, tokens: int, blocks: list[int]
    ) -> Iterator[dict[str, Any]]:
        tokens += round(draw.lognormvariate(*self.first))
        for _ in range(1 + int(draw.expovariate(1.0 / (self.turns - 1.0)))):
            if at_s > self.seconds or tokens > self.most_tokens:
                return
            blocks += [next(ids) for _ in range(tokens // BLOCK_TOKENS - len(blocks))]
            # The last block is not full, and so nobody else's.
            last = [next(ids)] if tokens % BLOCK_TOKENS else []
            answer = min(self.most_answer, max(1, round(draw.lognormvariate(*self.answer))))
            yield {
                "timestamp": round(1e3 * at_s),
                "input_length": tokens,
                "output_length": answer,
                "hash_ids": blocks + last,
            }
            tokens += answer + max(5, round(draw.lognormvariate(*self.question)))
            at_s += answer * self.token_s + draw.expovariate(1.0 / self.pause_s)
