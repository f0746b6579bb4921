"""Output lengths predicted online, beside the median of each request's source, over files of prompts and traces.

Every request is predicted before its length is known. The figures are about the second half of each file, on which
nothing was tuned. `us` is CPU time per request for predicting and learning together. Each answer is learned from; with
`--per-second N`, those that a sidecar learns from where so many requests come each second.

`--learned` adds the learned model, with its real child process: alone, and as `both`, which is what the scheduler gets
(the learned model's answer where it has been more accurate lately). `us` is then the child's CPU time per answered row,
`train` the CPU seconds of its last training, `MB` its memory, and `own` the sidecar's own cost of asking and judging
it, in us.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import json
import random
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from uellm.sidecar.prediction import LengthQuestion, OnlineLengths, Prediction, kendall_tau
from uellm.sidecar.prediction.learned import LearnedLengths
from uellm.sidecar.prediction.learned.child import EVERY_ROWS, FIRST_ROWS

WINDOW = 256  # of the source's median, the baseline
Row = tuple[LengthQuestion, int]


@dataclass(frozen=True)
class Result:
    name: str
    requests: int
    tau: float | None
    tau_source_median: float | None
    tau_within_source: float | None
    mae_tokens: float
    mae_source_median: float
    bucket_share: float
    coverage_p80: float
    coverage_p90: float
    microseconds: float
    megabytes: float


@dataclass(frozen=True)
class Learned:
    name: str
    tau_online: float | None
    tau: float | None
    tau_both: float | None
    mae_online: float
    mae_tokens: float
    mae_both: float
    coverage_p80: float
    coverage_p90: float
    used_share: float
    microseconds: float
    training_seconds: float
    megabytes: float
    sidecar_microseconds: float


IN_FLIGHT = 64
"""Requests that are asked about before the first of them ends."""

SLACK_ROWS = 2 * IN_FLIGHT
"""Lengths are told in groups, so learning begins so much later at the most."""

MOST_ROWS = 16_000
"""Of a trace: what is learned in service is waited for here."""

Told = tuple[Prediction, Prediction, Prediction, int]


async def beside(name: str, rows: Sequence[Row]) -> Learned:
    """The learned model beside the online one.

    A trace is replayed much faster than its requests arrived, so the replay waits for training that would have happened
    in the meantime.
    """
    model, learned = OnlineLengths(), LearnedLengths()
    runs = asyncio.create_task(learned.child.run())
    learned.child.wanted = True
    await _until(lambda: learned.child.pid is not None)
    told: list[Told] = []
    spent = 0.0
    for at in range(0, len(rows), IN_FLIGHT):
        batch = [(model.predict(question), tokens) for question, tokens in rows[at : at + IN_FLIGHT]]
        seconds, judged = await _one_batch(learned, batch)
        spent += seconds
        told += judged
        for prediction, tokens in batch:
            model.observe(prediction, tokens)
        due = (at - FIRST_ROWS - SLACK_ROWS) // (EVERY_ROWS + SLACK_ROWS) + 1
        await _until(lambda due=due: learned.trainings >= due)
    figures = learned.figures()
    runs.cancel()
    await asyncio.gather(runs, return_exceptions=True)
    half = told[len(told) // 2 :]
    real = [entry[-1] for entry in half]
    taus = [kendall_tau([entry[which].p50 for entry in half], real) for which in range(3)]
    errors = [sum(abs(entry[which].p50 - entry[-1]) for entry in half) / len(half) for which in range(3)]
    return Learned(
        name,
        *taus,
        *errors,
        sum(entry[-1] <= entry[1].p80 for entry in half) / len(half),
        sum(entry[-1] <= entry[1].p90 for entry in half) / len(half),
        sum(entry[2] is not entry[0] for entry in half) / len(half),
        learned.answer_seconds / max(1, learned.answers) * 1e6,
        figures["training_seconds"] or 0.0,
        (figures["resident_bytes"] or 0.0) / 1e6,
        spent / len(rows) * 1e6,
    )


async def _one_batch(learned: LearnedLengths, batch: Sequence[tuple[Prediction, int]]) -> tuple[float, list[Told]]:
    """CPU seconds of asking and judging, and each request's prediction by the online, the learned and both models."""
    used: dict[Prediction, Prediction] = {}
    begun = time.process_time()
    asked = [learned.ask(prediction, partial(used.__setitem__, prediction)) for prediction, _ in batch]
    await _until(lambda: all(each is None or each.use is None for each in asked))
    for (prediction, tokens), each in zip(batch, asked, strict=True):
        learned.observe(prediction, each, tokens)
    seconds = time.process_time() - begun
    told = []
    for (prediction, tokens), each in zip(batch, asked, strict=True):
        alone = prediction if each is None else each.better or prediction
        told.append((prediction, alone, used.get(prediction, prediction), tokens))
    return seconds, told


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - the child's own pace, which nothing here tells
        await asyncio.sleep(0.002)


def learned_table(results: Sequence[Learned]) -> str:
    head = f"{'learned model':32} {'tau':>6} {'online':>7} {'both':>6} {'MAE':>7} {'online':>7} {'both':>7}"
    lines = [f"{head} {'P80':>6} {'P90':>6} {'used':>6} {'us':>5} {'train':>6} {'MB':>6} {'own':>5}"]
    for each in results:
        taus = [" - " if tau is None else f"{tau:.3f}" for tau in (each.tau, each.tau_online, each.tau_both)]
        errors = f"{each.mae_tokens:7.1f} {each.mae_online:7.1f} {each.mae_both:7.1f}"
        shares = f"{each.coverage_p80:6.3f} {each.coverage_p90:6.3f} {each.used_share:6.2f}"
        cost = f"{each.microseconds:5.0f} {each.training_seconds:5.1f}s {each.megabytes:6.0f}"
        line = f"{each.name:32} {taus[0]:>6} {taus[1]:>7} {taus[2]:>6} {errors} {shares} {cost}"
        lines.append(f"{line} {each.sidecar_microseconds:5.0f}")
    return "\n".join(lines)


def prompts(path: Path) -> list[Row]:
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(1).shuffle(rows)
    return [
        (
            LengthQuestion("/v1/completions", str(row["source"]), 0, row["prompt_tokens"], row["prompt"]),
            row["output_tokens"],
        )
        for row in rows
    ]


def trace(path: Path) -> list[Row]:
    with gzip.open(path, "rt") as lines:
        return [row for entry in csv.DictReader(lines) if (row := _row(entry))[1] > 0]


def _row(entry: dict[str, str]) -> Row:
    prompt = entry.get("input_tokens") or entry.get("prompt_tokens") or entry.get("ContextTokens") or "0"
    output = entry.get("output_tokens") or entry.get("GeneratedTokens") or "0"
    return LengthQuestion("/v1/completions", entry.get("client", ""), 0, int(prompt)), int(output)


def replay(name: str, rows: Sequence[Row], per_s: float | None = None) -> Result:
    model, sources = OnlineLengths(), dict[str, deque[int]]()
    told: list[tuple[str, float, float, float, float, int]] = []
    spent = 0.0
    for number, (question, tokens) in enumerate(rows):
        own = sources.setdefault(question.tenant, deque(maxlen=WINDOW))
        begun = time.process_time()
        prediction = model.predict(question, None if per_s is None else number / per_s)
        model.observe(prediction, tokens)
        spent += time.process_time() - begun
        told.append(
            (question.tenant, prediction.p50, prediction.p80, prediction.p90, median(own) if own else 256, tokens)
        )
        own.append(tokens)
    half = told[len(told) // 2 :]
    real = [entry[-1] for entry in half]
    return Result(
        name,
        len(half),
        kendall_tau([entry[1] for entry in half], real),
        kendall_tau([entry[4] for entry in half], real),
        _within(half),
        sum(abs(entry[1] - entry[-1]) for entry in half) / len(half),
        sum(abs(entry[4] - entry[-1]) for entry in half) / len(half),
        sum(int(entry[1]).bit_length() == entry[-1].bit_length() for entry in half) / len(half),
        sum(entry[-1] <= entry[2] for entry in half) / len(half),
        sum(entry[-1] <= entry[3] for entry in half) / len(half),
        spent / len(rows) * 1e6,
        _megabytes(rows),
    )


def _within(half: Sequence[tuple[str, float, float, float, float, int]]) -> float | None:
    by_source: dict[str, list[tuple[float, int]]] = {}
    for entry in half:
        by_source.setdefault(entry[0], []).append((entry[1], entry[-1]))
    taus = [(kendall_tau([p for p, _ in pairs], [r for _, r in pairs]), len(pairs)) for pairs in by_source.values()]
    known = [(tau, count) for tau, count in taus if tau is not None]
    return sum(tau * count for tau, count in known) / sum(count for _, count in known) if known else None


def _megabytes(rows: Sequence[Row]) -> float:
    """The model's memory at the end."""
    tracemalloc.start()
    model = OnlineLengths()
    for question, tokens in rows[:20_000]:
        model.observe(model.predict(question), tokens)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size / 1e6


def files(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    for path in sorted(folder.glob("*.gz")):
        if "prompts" in path.name:
            yield path.name.split(".")[0], prompts(path)
        elif path.name.endswith(".csv.gz"):
            yield path.name.split(".")[0], trace(path)


def table(results: Sequence[Result]) -> str:
    head = (
        f"{'':32} {'tau':>6} {'source':>7} {'within':>7} {'MAE':>7} {'source':>7} {'bucket':>7} {'P80':>6} {'P90':>6}"
    )
    lines = [f"{head} {'us':>5} {'MB':>5}"]
    for each in results:
        taus = [
            " - " if tau is None else f"{tau:.3f}" for tau in (each.tau, each.tau_source_median, each.tau_within_source)
        ]
        errors = f"{each.mae_tokens:7.1f} {each.mae_source_median:7.1f} {each.bucket_share:7.3f}"
        cost = f"{each.coverage_p80:6.3f} {each.coverage_p90:6.3f} {each.microseconds:5.0f} {each.megabytes:5.1f}"
        lines.append(f"{each.name:32} {taus[0]:>6} {taus[1]:>7} {taus[2]:>7} {errors} {cost}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder with prompts and traces")
    parser.add_argument("--learned", action="store_true", help="the learned model beside the online one")
    parser.add_argument("--per-second", type=float, help="requests a second; without it each answer is learned from")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = list(files(args.traces))
    results = [replay(name, rows, args.per_second) for name, rows in found]
    if not results:
        print(f"{args.traces}: no traces there: give the folder with --traces", file=sys.stderr)
        return 2
    print(table(results))
    learned = [asyncio.run(beside(name, rows[:MOST_ROWS])) for name, rows in found] if args.learned else []
    if learned:
        print(f"\n{learned_table(learned)}")
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in (*results, *learned)], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
