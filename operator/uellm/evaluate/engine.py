"""vLLM's own scheduler and KV-cache manager under a virtual clock: what a real engine would do, without a model.

Every decision (who is in a step, how many tokens, which blocks, whom to preempt, what the prefix cache holds) is
vLLM's. What is ours is the time that a step takes (`StepTime`) and the tokens, which are all alike, for nobody reads
them. Prefix caching is on, vLLM's default. A block's hash is made from the trace's prefix ids instead of its tokens:
equal hashes then stand for equal prefixes, as in vLLM, and two prompts without ids have nothing in common.

`leap` runs many steps at once where vLLM has nothing to decide: every running request decodes, none can join,
every block is to be had. The outcome, to the last digit of the clock, is that of the single steps.
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
    """A request as the engine gets it. `key` names it; a lower `priority` goes first under PRIORITY."""

    key: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What a step gave when it ended: the requests that got a token each, and those of them that are complete."""

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
        """`step_s`: seconds of a step in place of the engine's own, of the same loads; asked once for each step."""
        self.engine = engine
        self.max_num_batched_tokens = max_num_batched_tokens or engine.max_num_batched_tokens
        self.preemptions = 0
        self._scheduler = build_scheduler(engine, policy, self.max_num_batched_tokens)
        # The worker's view of a step is built from this; there is no worker.
        self._scheduler._make_cached_request_data = lambda *_args: None
        self._scheduler.kv_cache_manager.allocate_slots = _in_place(
            self._scheduler.kv_cache_manager, engine.block_tokens
        )
        self._requests: dict[str, Any] = {}
        self._output = vllm().ModelRunnerOutput
        self._step_s = step_s or engine.step.step_s

    @property
    def busy(self) -> bool:
        """Whether it holds any request."""
        return bool(self._requests)

    @property
    def running(self) -> int:
        """Requests that run."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests in its own queue."""
        return len(self._scheduler.waiting)

    @property
    def kv_used_share(self) -> float:
        """Used share of the KV cache, 0 to 1, as vLLM's gauge has it."""
        return float(self._scheduler.get_kv_cache_usage())

    def add(self, work: Work) -> None:
        """Give it a request."""
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
        """Its client left."""
        self._scheduler.finish_requests(str(key), vllm().RequestStatus.FINISHED_ABORTED)
        del self._requests[str(key)]

    def step(self, now_s: float) -> Step:
        """Run one step from `now_s` on."""
        scheduled = self._scheduler.schedule()
        counts: dict[str, int] = scheduled.num_scheduled_tokens
        if not counts:
            raise CannotBeDone("the engine cannot go on: a request needs more KV cache than there is")
        prefill = kv = 0
        sampled = []
        requests = self._requests
        self.preemptions += len(scheduled.preempted_req_ids)
        for name, count in counts.items():
            request = requests[name]
            computed = request.num_computed_tokens
            kv += computed
            # More than one token beyond the prompt: an answer that was preempted is computed anew.
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
        """Steps that start before `until_s` and in which vLLM decides nothing: their ends, and who got a token in each.

        Empty where the next step is one to decide on; `step` then.
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
        """How many steps at least are certain to give each running request one token and nothing else."""
        scheduler = self._scheduler
        if not running or (scheduler.waiting and len(running) < scheduler.max_num_running_reqs):
            return 0
        if len(running) > self.max_num_batched_tokens:
            return 0
        if any(request.num_tokens - request.num_computed_tokens != 1 for request in running):
            return 0
        # The last token is left to a step of vLLM's own, which ends the request.
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
    """The manager's `allocate_slots`, with a short way for one more token in a block that it does not fill.

    vLLM finds nothing to allocate and nothing to cache then, after a third of a step's time.
    """
    allocate_slots, nothing = manager.allocate_slots, manager.empty_kv_cache_blocks

    def allocate(request: Any, num_new_tokens: int, **others: Any) -> Any:
        if num_new_tokens == 1 and 0 < request.num_computed_tokens % block_tokens < block_tokens - 1:
            return nothing
        return allocate_slots(request, num_new_tokens, **others)

    return allocate


def block_hasher(work: Work, block_tokens: int) -> Callable[[Any], list[bytes]]:
    """Hashes of a request's full blocks, for vLLM's prefix cache.

    A block that lies within blocks whose prefix ids are known has a hash of the last of these ids, which stands for
    the whole prefix, and of its place; every other block a hash of the request's own.
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
