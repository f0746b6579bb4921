"""A fast model of replicas behind one address: continuous batching by the step formula, compiled by numba.

Each replica is an engine with chunked prefill and the sidecar in front of it. A step holds one token of every answer
under way and then prompt tokens up to the chunk; it takes `StepTime.step_s`. The sidecar's part is reduced to its
rules: the gate (prompt tokens in the engine fill one step), the earliest deadline of a first token first, and
Moore-Hodgson: when one would be late, the largest so far goes to a best-effort queue, shortest first. Admission counts
the KV cache of whole requests. Requests go to the ready replica with the fewest requests, as known at the beginning of
each `SLOT_S`.

All arrays of one pool are fields of `ReplicaArrays`; a row is a replica. Rows are reused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

SLOT_S = 0.2
"""How old the routing's knowledge of the replicas may be, as the sidecars' reports."""
QUEUED = 1024
"""The sidecar's queue in requests, each of both kinds; more are refused, as by `scheduling.maxQueuedRequests`."""

GONE, READY, DRAINING = 0, 1, 2

NEVER = 2**62
"""A step that does not come."""


class Requests(NamedTuple):
    """What arrives, in order of arrival; one entry for each request."""

    arrival_s: Any
    prompt: Any
    """Prompt tokens, all of them."""
    uncached: Any
    """Prompt tokens to compute."""
    output: Any
    """Tokens of the answer."""
    expected: Any
    """The same as predicted."""
    due_s: Any
    """When its first token is due."""


class Outcomes(NamedTuple):
    """What became of each request; NaN: it did not happen."""

    first_s: Any
    end_s: Any


class ModelledEngine(NamedTuple):
    """The figures of an engine that the model needs."""

    floor_s: float
    per_prefill_token_s: float
    per_kv_token_s: float
    per_sequence_s: float
    overhead_s: float
    chunk: int
    sequences: int
    kv_tokens: float


class ReplicaArrays(NamedTuple):
    """The replicas."""

    phase: Any
    """GONE, READY or DRAINING."""
    clock_s: Any
    """End of the last step."""
    running: Any
    """Number of requests in the engine."""
    request: Any
    """Requests in the engine, in order of their admission."""
    left: Any
    """Prompt tokens that are still to compute, by request in the engine."""
    decoding: Any
    """Number of requests in the engine whose prompt is computed; they are the first ones."""
    last_step: Any
    """The step that gives the last token, by request that decodes."""
    step: Any
    """Steps so far."""
    next_end: Any
    """The earliest `last_step`."""
    todo: Any
    """Sum of `left`."""
    kv: Any
    """KV tokens held."""
    reserved: Any
    """KV tokens that the requests in the engine will need."""
    waiting: Any
    """Number of requests in the queue of those that can be on time."""
    queue: Any
    """These, by due time."""
    late: Any
    """Number of requests in the best-effort queue."""
    tail: Any
    """These, by expected tokens."""
    coming: Any
    """Number of requests that were routed here in this slot."""
    inbox: Any
    """These."""
    busy_s: Any
    """Time in steps since it was last read."""


def new_state(replicas: int, sequences: int) -> ReplicaArrays:
    """A pool with room for so many replicas, none of which is there."""

    def whole(*columns: int) -> Any:
        return np.zeros((replicas, *columns), np.int64)

    return ReplicaArrays(
        phase=whole(),
        clock_s=np.zeros(replicas),
        running=whole(),
        request=whole(sequences),
        left=whole(sequences),
        decoding=whole(),
        last_step=whole(sequences),
        step=whole(),
        next_end=np.full(replicas, NEVER),
        todo=whole(),
        kv=whole(),
        reserved=np.zeros(replicas),
        waiting=whole(),
        queue=whole(QUEUED),
        late=whole(),
        tail=whole(QUEUED),
        coming=whole(),
        inbox=whole(4 * QUEUED),
        busy_s=np.zeros(replicas),
    )


@njit(cache=True)
def serve(
    requests: Requests, outcomes: Outcomes, engine: ModelledEngine, state: ReplicaArrays, first: int, until_s: float
) -> int:
    """Advance all replicas to `until_s`. `first`: the next request to arrive; returns the next one after that."""
    start_s = until_s
    for replica in range(len(state.phase)):
        if state.phase[replica] != GONE:
            start_s = min(start_s, state.clock_s[replica])
    if first < len(requests.arrival_s):
        start_s = min(start_s, requests.arrival_s[first])
    slot = int(start_s / SLOT_S)
    while slot * SLOT_S < until_s:
        end_s = min((slot + 1) * SLOT_S, until_s)
        first = _route(requests, state, first, end_s)
        for replica in range(len(state.phase)):
            if state.phase[replica] != GONE:
                _advance(requests, outcomes, engine, state, replica, end_s)
        slot += 1
    return first


@njit(cache=True)
def _route(requests: Requests, state: ReplicaArrays, first: int, end_s: float) -> int:
    """Give every request that arrives before `end_s` to the replica with the fewest. Without any, it is refused."""
    while first < len(requests.arrival_s) and requests.arrival_s[first] < end_s:
        best, least = -1, 0
        for replica in range(len(state.phase)):
            if state.phase[replica] != READY or state.coming[replica] >= state.inbox.shape[1]:
                continue
            held = state.running[replica] + state.waiting[replica] + state.late[replica] + state.coming[replica]
            if best < 0 or held < least:
                best, least = replica, held
        if best >= 0:
            state.inbox[best, state.coming[best]] = first
            state.coming[best] += 1
        first += 1
    return first


@njit(cache=True)
def _advance(
    requests: Requests, outcomes: Outcomes, engine: ModelledEngine, state: ReplicaArrays, replica: int, until_s: float
) -> None:
    """Run steps until the slot's end; the last one may end after it."""
    now_s, taken, coming = state.clock_s[replica], 0, state.coming[replica]
    while now_s < until_s:
        while taken < coming and requests.arrival_s[state.inbox[replica, taken]] <= now_s:
            _enqueue(requests, engine, state, replica, state.inbox[replica, taken], now_s)
            taken += 1
        _dispatch(requests, engine, state, replica, now_s)
        next_s = requests.arrival_s[state.inbox[replica, taken]] if taken < coming else until_s
        if state.running[replica] == 0:
            now_s = max(now_s, next_s)
            continue
        began_s = now_s
        if state.todo[replica] == 0:
            now_s = _decode(requests, outcomes, engine, state, replica, now_s, min(next_s, until_s))
        else:
            now_s = _step(requests, outcomes, engine, state, replica, now_s)
        state.busy_s[replica] += now_s - began_s
    while taken < coming:
        # It arrived while the last step ran.
        _enqueue(requests, engine, state, replica, state.inbox[replica, taken], now_s)
        taken += 1
    state.coming[replica] = 0
    state.clock_s[replica] = now_s


@njit(cache=True)
def _token_s(engine: ModelledEngine, state: ReplicaArrays, replica: int) -> float:
    """Seconds for each prompt token in full steps beside what runs now."""
    room = max(1, engine.chunk - state.running[replica])
    full_s = max(engine.floor_s, engine.per_prefill_token_s * room)
    full_s += engine.per_kv_token_s * state.kv[replica] + engine.per_sequence_s * state.running[replica]
    return float((full_s + engine.overhead_s) / room)


@njit(cache=True)
def _enqueue(
    requests: Requests, engine: ModelledEngine, state: ReplicaArrays, replica: int, request: int, now_s: float
) -> None:
    """Into the queue by due time; then demote the largest until all that stay can be on time."""
    count, queue = state.waiting[replica], state.queue[replica]
    if count == QUEUED:
        return
    place = count
    while place > 0 and requests.due_s[queue[place - 1]] > requests.due_s[request]:
        queue[place] = queue[place - 1]
        place -= 1
    queue[place] = request
    state.waiting[replica] = count + 1
    token_s = _token_s(engine, state, replica)
    while _demoted(requests, state, replica, now_s + state.todo[replica] * token_s, token_s):
        pass


@njit(cache=True)
def _demoted(requests: Requests, state: ReplicaArrays, replica: int, start_s: float, token_s: float) -> bool:
    """One pass of Moore and Hodgson: demote the largest up to the first late one, and tell whether there was any."""
    count, queue = state.waiting[replica], state.queue[replica]
    largest = 0
    for place in range(count):
        start_s += requests.uncached[queue[place]] * token_s
        if requests.uncached[queue[place]] > requests.uncached[queue[largest]]:
            largest = place
        if start_s > requests.due_s[queue[place]]:
            _demote(requests, state, replica, largest)
            return True
    return False


@njit(cache=True)
def _demote(requests: Requests, state: ReplicaArrays, replica: int, place: int) -> None:
    """Move one to the best-effort queue. A full one refuses it."""
    queue, tail = state.queue[replica], state.tail[replica]
    request = queue[place]
    state.waiting[replica] -= 1
    for index in range(place, state.waiting[replica]):
        queue[index] = queue[index + 1]
    count = state.late[replica]
    if count == QUEUED:
        return
    size, index = requests.uncached[request] + requests.expected[request], count
    while index > 0 and requests.uncached[tail[index - 1]] + requests.expected[tail[index - 1]] < size:
        tail[index] = tail[index - 1]
        index -= 1
    tail[index] = request
    state.late[replica] = count + 1


@njit(cache=True, inline="always")
def _dispatch(requests: Requests, engine: ModelledEngine, state: ReplicaArrays, replica: int, now_s: float) -> None:
    """Send to the engine what fills its next step: on time first, and best effort where nothing else waits."""
    queue = state.queue[replica]
    while state.running[replica] < engine.sequences:
        if state.todo[replica] + state.running[replica] >= engine.chunk:
            return
        while state.waiting[replica] and requests.due_s[queue[0]] < now_s:
            _demote(requests, state, replica, 0)
        on_time = state.waiting[replica] > 0
        if not on_time and state.late[replica] == 0:
            return
        request = queue[0] if on_time else state.tail[replica, state.late[replica] - 1]
        needs = requests.prompt[request] + requests.expected[request]
        if state.running[replica] and state.reserved[replica] + needs > 0.95 * engine.kv_tokens:
            return
        if on_time:
            state.waiting[replica] -= 1
            for index in range(state.waiting[replica]):
                queue[index] = queue[index + 1]
        else:
            state.late[replica] -= 1
        place = state.running[replica]
        state.request[replica, place] = request
        state.left[replica, place] = requests.uncached[request]
        state.todo[replica] += requests.uncached[request]
        state.kv[replica] += requests.prompt[request] - requests.uncached[request]
        state.reserved[replica] += needs
        state.running[replica] = place + 1


@njit(cache=True, inline="always")
def _step(
    requests: Requests, outcomes: Outcomes, engine: ModelledEngine, state: ReplicaArrays, replica: int, now_s: float
) -> float:
    """One step with prompt tokens in it. Returns its end."""
    left, decoding = state.left[replica], state.decoding[replica]
    room, sequences, place = engine.chunk - decoding, decoding, decoding
    while place < state.running[replica] and room > 0:
        tokens = min(room, left[place])
        room -= tokens
        left[place] -= tokens
        sequences += 1
        place += 1
    prefill = engine.chunk - decoding - room
    state.todo[replica] -= prefill
    state.kv[replica] += prefill + decoding
    state.step[replica] += 1
    end_s = now_s + max(engine.floor_s, engine.per_prefill_token_s * prefill)
    end_s += engine.per_kv_token_s * state.kv[replica] + engine.per_sequence_s * sequences + engine.overhead_s
    while decoding < state.running[replica] and left[decoding] == 0:
        request = state.request[replica, decoding]
        outcomes.first_s[request] = end_s
        last = state.step[replica] + requests.output[request] - 1
        state.last_step[replica, decoding] = last
        state.next_end[replica] = min(state.next_end[replica], last)
        decoding += 1
    state.decoding[replica] = decoding
    if state.next_end[replica] <= state.step[replica]:
        _finish(requests, outcomes, state, replica, end_s)
    return float(end_s)


@njit(cache=True, inline="always")
def _decode(
    requests: Requests,
    outcomes: Outcomes,
    engine: ModelledEngine,
    state: ReplicaArrays,
    replica: int,
    now_s: float,
    until_s: float,
) -> float:
    """Steps without prompt tokens, until an answer ends or the time is up. Returns the end of the last."""
    running, most = state.running[replica], state.next_end[replica] - state.step[replica]
    constant_s = engine.floor_s + engine.per_sequence_s * running + engine.overhead_s
    steps, kv = 0, state.kv[replica]
    while steps < most and (steps == 0 or now_s < until_s):
        kv += running
        now_s += constant_s + engine.per_kv_token_s * kv
        steps += 1
    state.kv[replica] = kv
    state.step[replica] += steps
    if steps == most:
        _finish(requests, outcomes, state, replica, now_s)
    return float(now_s)


@njit(cache=True)
def _finish(requests: Requests, outcomes: Outcomes, state: ReplicaArrays, replica: int, end_s: float) -> None:
    """Take out the answers that are complete."""
    kept, decoding, next_end = 0, state.decoding[replica], NEVER
    for place in range(state.running[replica]):
        request = state.request[replica, place]
        last = state.last_step[replica, place]
        if place < decoding and last <= state.step[replica]:
            outcomes.end_s[request] = end_s
            state.kv[replica] -= requests.prompt[request] + requests.output[request] - 1
            state.reserved[replica] -= requests.prompt[request] + requests.expected[request]
            state.decoding[replica] -= 1
            continue
        if place < decoding:
            next_end = min(next_end, last)
        state.request[replica, kept] = request
        state.left[replica, kept] = state.left[replica, place]
        state.last_step[replica, kept] = last
        kept += 1
    state.running[replica] = kept
    state.next_end[replica] = next_end
