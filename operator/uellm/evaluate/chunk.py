"""The engine's chunk size as the planner chooses it, from the trace's own mean lengths and the tightest targets."""

from __future__ import annotations

from uellm.evaluate.queue import Scenario
from uellm.planner.chunk import Chunk, best_chunk
from uellm.sidecar.scheduling import Targets


def chunk_for(scenario: Scenario) -> Chunk:
    """What `--max-batched-tokens auto` stands for. Raises CannotBeDone where the trace has no request to replay."""
    # Lengths do not depend on the seed, which draws the classes alone.
    jobs = scenario.jobs(seed=1)
    output_tokens = sum(job.output_tokens for job in jobs) / len(jobs)
    targets = [request_class.targets for request_class in scenario.classes.classes if request_class.share > 0]
    return best_chunk(
        scenario.engine.step,
        tpot_s=_tightest([_tpot_s(target, output_tokens) for target in targets]),
        ttft_s=_tightest([target.ttft_s for target in targets]),
        prompt_tokens=round(sum(job.prompt_tokens for job in jobs) / len(jobs)),
        output_tokens=round(output_tokens),
        sequences=scenario.engine.max_num_seqs,
        kv_tokens=scenario.engine.kv_tokens,
    )


def _tpot_s(targets: Targets, output_tokens: float) -> float | None:
    """The class's TPOT target; where it has an end-to-end target alone, what that leaves for each token."""
    if targets.tpot_s is not None or targets.e2e_s is None:
        return targets.tpot_s
    return (targets.e2e_s - (targets.ttft_s or 0.0)) / output_tokens


def _tightest(targets: list[float | None]) -> float | None:
    return min((target_s for target_s in targets if target_s is not None), default=None)
