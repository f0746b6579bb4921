"""The report of the load for the gateway's router (`uellm.api.replica_load`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from math import inf

from uellm.api.replica_load import SLACK_BOUNDS_S, SPANS, PrefixNews, ReplicaLoad, WaitingLoad
from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import Ticket


def load_of(view: EngineView, queued: Iterable[Ticket], prefixes: PrefixNews, now_s: float) -> ReplicaLoad:
    """The load of the engine and its queue. Takes a pass over the queue, so call it a few times a second.

    A ticket with a negative stamp is in the best-effort queue. Orders without one expect to serve every request.
    """
    state = view.state
    requests, tokens = [0] * SPANS, [0] * SPANS
    late_requests = late_tokens = 0
    for ticket in queued:
        if ticket.stamp < 0:
            late_requests += 1
            late_tokens += ticket.uncached_tokens
        else:
            span = bisect_left(SLACK_BOUNDS_S, ticket.deadline_s - now_s)
            requests[span] += 1
            tokens[span] += ticket.uncached_tokens
    return ReplicaLoad(
        ready=state.ready,
        step=view.step.current,
        measured=view.step.observed > 0,
        chunk_tokens=view.chunk_tokens,
        gap_s=view.step.gap_s,
        sequences=len(view.running),
        max_sequences=state.max_num_seqs,
        decoding=view.decoding,
        remaining_tokens=sum(ticket.remaining_tokens for ticket in view.running),
        unfilled_tokens=view.backlog_tokens(now_s),
        kv_tokens=view.kv_tokens,
        kv_capacity_tokens=state.kv_tokens or 0,
        paced_tokens_per_second=None if view.paced_rate == inf else view.paced_rate,
        waiting=tuple(WaitingLoad(*span) for span in zip(requests, tokens, strict=True)),
        late=WaitingLoad(late_requests, late_tokens),
        prefixes=prefixes,
    )
