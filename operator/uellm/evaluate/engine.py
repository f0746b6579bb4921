"""vLLM's own scheduler and KV-cache manager under a virtual clock: what a real engine would do, without a model.

All decisions are vLLM's: which requests are in a step, how many tokens, which blocks, which request to preempt, what
the prefix cache holds. Ours are the duration of a step (`StepTime`) and the tokens, which are all alike because nobody
reads them. Prefix caching is on, as is vLLM's default. A block's hash is computed from the trace's prefix ids instead
of its tokens: equal hashes then mean equal prefixes, as in vLLM, and two prompts without ids share nothing.

`leap` runs many steps at once while vLLM has nothing to decide: every running request decodes, none can join, and
enough blocks are free. The result is identical to that of single steps, to the last digit of the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from uellm.errors import CannotBeDone
from uellm.evaluate.traces import PREFIX_BLOCK_TOKENS
from uellm.evaluate.vllm_scheduler import FCFS, build_scheduler, vllm
from uellm.planner.cost.engine_file import EngineFile


@dataclass(frozen=True, slots=True)
class Work:
    """A request for the engine. `key` identifies it; a lower `priority` goes first under PRIORITY."""

    key: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a step at its end: the requests that got a token each, and those of them that are complete."""

    end_s: float
    tokens: list[int]
    finished: list[int]


class VirtualEngine:
    """The engine: `add`, then `step` or `leap` while `busy`."""

    def __init__(
        self,
        engine: EngineFile,
        policy: str = FCFS,
        max_num_batched_tokens: int | None = None,
        step_s: Callable[[float, float, float], float] | None = None,
    ) -> None:
        """`step_s` replaces the engine's own step time. It is called once for each step."""
        self.engine = engine
        self.max_num_batched_tokens = max_num_batched_tokens or engine.max_num_batched_tokens
        self.preemptions = 0
        self._scheduler = build_scheduler(engine, policy, self.max_num_batched_tokens)
        # vLLM builds the worker's view of a step from this; there is no worker here.
        self._scheduler._make_cached_request_data = lambda *_args: None
        self._scheduler.kv_cache_manager.allocate_slots = _in_place(
            self._scheduler.kv_cache_manager, engine.block_tokens
        )
        self._requests: dict[str, Any] = {}
        self._output = vllm().ModelRunnerOutput
        self._step_s = step_s or engine.step.step_s

    @property
    def busy(self) -> bool:
        """Whether it has any request."""
        return bool(self._requests)

    @property
    def running(self) -> int:
        """Number of running requests."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Number of requests in its queue."""
        return len(self._scheduler.waiting)

    @property
    def kv_used_share(self) -> float:
        """Used share of the KV cache, 0 to 1, as in vLLM's gauge."""
        return float(self._scheduler.get_kv_cache_usage())

    def add(self, work: Work) -> None:
        """Add a request."""
        v = vllm()
        request = v.Request(
            str(work.key),
            [0] * work.prompt_tokens,
            v.SamplingParams(max_tokens=work.output_tokens, ignore_eos=True),
            None,
            arrival_time=work.arrival_s,
            priority=work.priority,
            block_hasher=block_hasher(work, self.engine.block_tokens),
        )
        self._requests[request.request_id] = request
        self._scheduler.add_request(request)

    def abort(self, key: int) -> None:
        """Abort a request, because its client disconnected."""
        self._scheduler.finish_requests(str(key), vllm().RequestStatus.FINISHED_ABORTED)
        del self._requests[str(key)]

    def step(self, now_s: float) -> Step:
        """Run one step that starts at `now_s`."""
        scheduled = self._scheduler.schedule()
        counts: dict[str, int] = scheduled.num_scheduled_tokens
        if not counts:
            raise CannotBeDone("the engine is stuck: a request needs more KV cache than there is")
        prefill = kv = 0
        sampled = []
        requests = self._requests
        self.preemptions += len(scheduled.preempted_req_ids)
        for name, count in counts.items():
            request = requests[name]
            computed = request.num_computed_tokens
            kv += computed
            # More than one token beyond the prompt: the answer of a preempted request is recomputed.
            if count > 1 or computed - count < request.num_prompt_tokens:
                prefill += count
            sampled.append([] if request.is_prefill_chunk else [1])
        end_s = now_s + self._step_s(prefill, kv, len(counts))
        names = list(counts)
        output = self._output(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        return self._collect(end_s, self._scheduler.update_from_output(scheduled, output))

    def _collect(self, end_s: float, outputs: Any) -> Step:
        tokens, finished = [], []
        for of_client in outputs.values():
            for output in of_client.outputs:
                if output.new_token_ids:
                    tokens.append(int(output.request_id))
                if output.finish_reason is not None:
                    finished.append(int(output.request_id))
                    del self._requests[output.request_id]
        return Step(end_s, tokens, finished)

    def leap(self, now_s: float, until_s: float) -> tuple[list[float], list[int]]:
        """Run the steps that start before `until_s` and in which vLLM decides nothing.

        Returns their ends, and who got a token in each.
        """
        running = self._scheduler.running
        count = self._free_steps(running)
        if count < 2:
            return [], []
        kv, sequences = sum(request.num_tokens for request in running), len(running)
        ends: list[float] = []
        while now_s < until_s and len(ends) < count:
            now_s += self._step_s(0, kv, sequences)
            ends.append(now_s)
            kv += sequences
        self._advance(running, len(ends))
        return ends, [int(request.request_id) for request in running]

    def _free_steps(self, running: list[Any]) -> int:
        """A lower bound on the number of steps that give each running request one token and change nothing else."""
        scheduler = self._scheduler
        if not running or (scheduler.waiting and len(running) < scheduler.max_num_running_reqs):
            return 0
        if len(running) > self.max_num_batched_tokens:
            return 0
        if any(request.num_tokens - request.num_computed_tokens != 1 for request in running):
            return 0
        # The last token is left to a normal step, in which vLLM ends the request.
        count = min(request.max_tokens - request.num_output_tokens for request in running) - 1
        blocks = scheduler.kv_cache_manager.block_pool.get_num_free_blocks() // len(running) - 1
        return int(min(count, blocks * self.engine.block_tokens))

    def _advance(self, running: Iterable[Any], steps: int) -> None:
        """Give each request its tokens and blocks, as `steps` calls of `schedule` and `update_from_output` would."""
        manager = self._scheduler.kv_cache_manager
        for request in running:
            request.append_output_token_ids([1] * steps)
            manager.allocate_slots(request, steps)
            request.num_computed_tokens += steps


def _in_place(manager: Any, block_tokens: int) -> Callable[..., Any]:
    """The manager's `allocate_slots` with a shortcut for one more token in a block that it does not fill.

    vLLM would find nothing to allocate or to cache, but take a third of a step's time for it.
    """
    allocate_slots, nothing = manager.allocate_slots, manager.empty_kv_cache_blocks

    def allocate(request: Any, num_new_tokens: int, **others: Any) -> Any:
        if num_new_tokens == 1 and 0 < request.num_computed_tokens % block_tokens < block_tokens - 1:
            return nothing
        return allocate_slots(request, num_new_tokens, **others)

    return allocate


def block_hasher(work: Work, block_tokens: int) -> Callable[[Any], list[bytes]]:
    """Hashes of a request's full blocks, for vLLM's prefix cache.

    The hash of a block inside blocks with known prefix ids consists of the last of these ids, which identifies the
    whole prefix, and the block's position. The hash of any other block is unique to the request.
    """
    known = len(work.blocks) * PREFIX_BLOCK_TOKENS if work.blocks else 0
    known = min(known, work.prompt_tokens)

    def hashes(request: Any) -> list[bytes]:
        start, end = len(request.block_hashes), request.num_tokens // block_tokens
        return [_block_hash(work, index, known, block_tokens) for index in range(start, end)]

    return hashes


def _block_hash(work: Work, index: int, known_tokens: int, block_tokens: int) -> bytes:
    last = (index + 1) * block_tokens
    if last <= known_tokens:
        return b"p%d:%d" % (work.blocks[(last - 1) // PREFIX_BLOCK_TOKENS], last)
    return b"r%d:%d" % (work.key, last)
