"""The route `auto`: the replica that is predicted to serve this request best."""

from __future__ import annotations

from collections.abc import Sequence

from uellm.routing.books import Replica
from uellm.routing.request import RoutedRequest
from uellm.step_time import StepTime

UNKNOWN_STEP = StepTime(
    floor_s=6e-3, per_prefill_token_s=50e-6, per_kv_token_s=50e-9, per_sequence_s=15e-6, overhead_s=0.5e-3
)
"""About an 8B model on one current GPU: where no replica has told its own."""


class Predicted:
    """The earliest predicted first token."""

    def choose(self, request: RoutedRequest, replicas: Sequence[Replica], now_s: float) -> Replica:
        """The replica with the earliest first token; among equals the one that has had the fewest requests."""
        return min(replicas, key=lambda replica: (_first_token_s(request, replica, now_s), replica.sent, replica.name))


def _first_token_s(request: RoutedRequest, replica: Replica, now_s: float) -> float:
    """Seconds until the first token."""
    load = replica.fresh(now_s)
    step = (load.step if load is not None else None) or UNKNOWN_STEP
    tokens = float(replica.unfilled_tokens)
    if load is not None:
        reported = load.unfilled_tokens + load.late.prompt_tokens + sum(span.prompt_tokens for span in load.waiting)
        since = sum(sent.uncached_tokens for sent in replica.outstanding.values() if sent.sent_s > replica.reported_s)
        tokens = max(tokens, reported + since)
    prompt_s = step.per_prefill_token_s * (tokens + replica.uncached_tokens(request))
    return prompt_s + step.step_s(0, 0 if load is None else load.kv_tokens, len(replica.outstanding))
