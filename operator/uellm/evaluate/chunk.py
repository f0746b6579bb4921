"""The chunk size that the planner chooses for the trace's mean lengths and the classes' targets."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from uellm.evaluate.queue import Scenario
from uellm.planner.cost.chunk import Chunk, best_chunk
from uellm.planner.request import SloClass


def chunk_for(scenario: Scenario) -> Chunk:
    """The chunk size for `--max-batched-tokens auto`. Raises CannotBeDone where the trace has no request to replay."""
    # Lengths do not depend on the seed, which only draws the classes.
    jobs = scenario.jobs(seed=1)
    targets = [request_class.targets for request_class in scenario.classes.classes if request_class.share > 0]
    sequences = scenario.engine.max_num_seqs
    chunk = best_chunk(
        scenario.engine.step,
        classes=[SloClass(target.name, target.ttft_s, target.tpot_s, target.e2e_s) for target in targets],
        prompt_tokens=round(fmean(job.prompt_tokens for job in jobs)),
        output_tokens=round(fmean(job.output_tokens for job in jobs)),
        sequences=sequences,
        kv_tokens=scenario.engine.kv_tokens,
    )
    if chunk.tokens >= sequences:
        return chunk
    return replace(
        chunk, tokens=sequences, reason=f"{chunk.reason}; at least one token for each of {sequences} sequences"
    )
