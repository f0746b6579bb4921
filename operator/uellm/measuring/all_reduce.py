"""All-reduce over a group of devices: a process for each, as vLLM has them. NCCL on GPUs, Gloo on the CPU.

measuring.pyz all-reduce --rank 0 --size 2 --on GPU --meet FILE      the process of rank 0 prints {bytes: nanoseconds}
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from uellm.errors import CannotBeDone
from uellm.measuring.document import On

COMMAND = "all-reduce"
SIZES_BYTES = tuple(2**power for power in (14, 16, 18, 20, 22, 24))
"""16 KiB, a step of decoding, to 16 MiB, a chunk of prompts."""
TIMEOUT_S = 60.0
_ANSWER = "all-reduce nanoseconds by bytes: "
WARM_UP, BATCHES, CALLS = 5, 5, 10


def group_times(program: Sequence[str], size: int, on: On) -> dict[int, int]:
    """Nanoseconds by bytes, over the first `size` devices of CUDA_VISIBLE_DEVICES. Raises CannotBeDone."""
    with tempfile.TemporaryDirectory() as directory:
        meet = Path(directory) / "meet"
        workers = [_start(program, rank, size, on, meet) for rank in range(size)]
        try:
            return _answer(workers)
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()


def _start(program: Sequence[str], rank: int, size: int, on: On, meet: Path) -> subprocess.Popen[str]:
    arguments = [COMMAND, f"--rank={rank}", f"--size={size}", f"--on={on}", f"--meet={meet}"]
    # Gloo would look the host's name up, which a container may not know.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*program, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _answer(workers: Sequence[subprocess.Popen[str]]) -> dict[int, int]:
    try:
        output, errors = workers[0].communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CannotBeDone(f"not done in {TIMEOUT_S:.0f} s") from None
    if workers[0].returncode:
        lines = errors.strip().splitlines() or [f"exit status {workers[0].returncode}"]
        raise CannotBeDone(lines[-1])
    # NCCL prints its version to standard output where it is told to.
    [answer] = [line for line in output.splitlines() if line.startswith(_ANSWER)]
    return {int(size): int(nanoseconds) for size, nanoseconds in json.loads(answer.removeprefix(_ANSWER)).items()}


def work(rank: int, size: int, on: On, meet: str) -> None:
    """The process of one rank."""
    import torch
    import torch.distributed

    device = torch.device("cuda", rank) if on == "GPU" else torch.device("cpu")
    if on == "GPU":
        torch.cuda.set_device(device)
    backend = "nccl" if on == "GPU" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{meet}", rank=rank, world_size=size)

    def sync() -> None:
        if on == "GPU":
            torch.cuda.synchronize(device)

    found = {}
    for size_bytes in SIZES_BYTES:
        tensor = torch.zeros(size_bytes // 4, dtype=torch.float32, device=device)
        found[size_bytes] = _nanoseconds(partial(torch.distributed.all_reduce, tensor), sync)
    if rank == 0:
        print(_ANSWER + json.dumps(found), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _nanoseconds(call: Callable[[], object], sync: Callable[[], None]) -> int:
    # Every rank makes the same number of calls, for each waits for the others.
    for _ in range(WARM_UP):
        call()
    sync()
    times_s = []
    for _ in range(BATCHES):
        start_s = time.perf_counter()
        for _ in range(CALLS):
            call()
        sync()
        times_s.append(time.perf_counter() - start_s)
    return max(1, round(statistics.median(times_s) / CALLS * 1e9))
