"""A worker of the CPU engine that records the time and content of its steps: `worker_cls` of a measured engine.

The time is the CPU time of the worker's own thread (`time.thread_time`), so waiting for other programs or for the
previous stage does not count. With one OpenMP thread it covers everything that the stage computes. A busy machine still
slows the thread through caches, memory and sibling cores. Therefore every few steps also record the time of a fixed
piece of work, `reference`, so that times measured at different moments can be compared.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
from vllm.v1.worker.cpu_worker import CPUWorker

# A matrix product like those of the models' layers, over 64 MiB of matrices, which exceed every cache.
REFERENCE_ROWS, REFERENCE_SHAPE, REFERENCE_MATRICES = 16, (2048, 1024), 8
REFERENCE_EVERY = 8


class TimedWorker(CPUWorker):
    """Adds `steps_taken` and `memory_held`, for `LLM.collective_rpc`."""

    def load_model(self, *args: Any, **options: Any) -> None:
        """Count the weights while they are allocated. Afterwards the CPU's kernels repack them, unseen by PyTorch."""
        load_weights = DummyModelLoader.load_weights

        def counted(loader: Any, model: Any, *rest: Any) -> None:
            self._weight_bytes = sum({t.data_ptr(): t.numel() * t.element_size() for t in model.parameters()}.values())
            load_weights(loader, model, *rest)

        before = _anonymous_bytes()
        with mock.patch.object(DummyModelLoader, "load_weights", counted):
            super().load_model(*args, **options)
        self._grown_bytes = _anonymous_bytes() - before

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run one step and record its sizes and seconds."""
        begun, began = time.thread_time(), time.perf_counter()
        output = super().execute_model(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens:
            step = {**_sizes(scheduler_output), "seconds": time.thread_time() - begun}
            step["wallSeconds"] = time.perf_counter() - began
            if len(self._steps()) % REFERENCE_EVERY == 0:
                step["reference"] = self._reference_s()
            self._steps().append(step)
        return output

    def sample_tokens(self, *args: Any, **options: Any) -> Any:
        """Sampling belongs to the step before it."""
        begun = time.thread_time()
        output = super().sample_tokens(*args, **options)
        if self._steps():
            self._steps()[-1]["seconds"] += time.thread_time() - begun
        return output

    def steps_taken(self) -> list[dict[str, float]]:
        """The steps since the last call."""
        taken = self._steps()
        self._taken: list[dict[str, float]] = []
        return taken

    def memory_held(self) -> dict[str, int]:
        """Bytes of this rank: weights as allocated, the growth of the process while loading them, and KV cache."""
        caches = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.model_runner.kv_caches}
        return {"weights": self._weight_bytes, "grown": self._grown_bytes, "kv": sum(caches.values())}

    def _reference_s(self) -> float:
        """CPU seconds of the fixed piece of work, now."""
        if not hasattr(self, "_matrices"):
            self._matrices = [torch.rand(REFERENCE_SHAPE) for _ in range(REFERENCE_MATRICES)]
        rows = torch.ones(REFERENCE_ROWS, REFERENCE_SHAPE[1])
        begun = time.thread_time()
        for matrix in self._matrices:
            torch.nn.functional.linear(rows, matrix)
        return time.thread_time() - begun

    def _steps(self) -> list[dict[str, float]]:
        if not hasattr(self, "_taken"):
            self._taken = []
        return self._taken


def _anonymous_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def _sizes(scheduled: Any) -> dict[str, float]:
    """Prompt tokens, decoding sequences and KV tokens held. A prompt's last chunk must have two tokens."""
    tokens = scheduled.num_scheduled_tokens
    cached = scheduled.scheduled_cached_reqs
    held = sum(request.num_computed_tokens for request in scheduled.scheduled_new_reqs)
    held += sum(cached.num_computed_tokens) + sum(tokens.values())
    return {
        "prefillTokens": sum(count for count in tokens.values() if count > 1),
        "kvTokens": held,
        "sequences": sum(count == 1 for count in tokens.values()),
    }
