"""`measuring.pyz --directory DIR`: measures the devices of this container and writes DIR/measurements.json.

The first process of a container starts another one that measures, and ends it, and itself, as soon as it gets a signal:
whoever wants the GPUs does not wait for a kernel.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from uellm.documents import UnreadableDocument
from uellm.errors import CannotBeDone
from uellm.measuring import all_reduce
from uellm.measuring.device_list import devices_of_gpu_node, devices_of_simulated_node
from uellm.measuring.document import MeasurementDocument, MeasuringTerms
from uellm.measuring.session import ON_CPU, Bench, carry_out
from uellm.measuring.store import read_document, write_document
from uellm.measuring.work import still_valid

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or be one process of a group."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == [all_reduce.COMMAND]:
        return _work_in_group(words[1:])
    options = _parser().parse_args(words)
    return supervised(lambda: _measure(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="measuring.pyz", description="Measure the GPUs of this container")
    parser.add_argument("--directory", type=Path, required=True, help="where the result is written")
    parser.add_argument("--on", choices=("GPU", "CPU"), default="GPU", help="CPU: of simulated devices")
    parser.add_argument("--request", default="", help="another one than that of the result: measure everything anew")
    parser.add_argument("--mark", default="", help="written into the result when nothing is left to measure")
    return parser


def _work_in_group(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"measuring.pyz {all_reduce.COMMAND}")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--on", choices=("GPU", "CPU"), required=True)
    parser.add_argument("--meet", required=True)
    options = parser.parse_args(words)
    all_reduce.work(options.rank, options.size, options.on, options.meet)
    return 0


def _measure(options: argparse.Namespace) -> int:
    try:
        terms = devices_of_gpu_node() if options.on == "GPU" else devices_of_simulated_node()
        # Before torch is imported: then its devices are these, in this order.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(terms) if options.on == "GPU" else ""
        bench = _bench(options, terms)
        document = replace(
            still_valid(_earlier(options.directory), options.on, options.request, terms),
            torch_version=str(bench.torch.__version__),
            cuda_version=str(bench.torch.version.cuda or ""),
        )
        document = carry_out(bench, document, lambda made: write_document(options.directory, made))
        if unmeasured := [uuid for uuid in terms if not document.devices[uuid].measured_at]:
            why = document.failures[-1] if document.failures else "torch multiplies none of the formats there"
            raise CannotBeDone(f"{', '.join(unmeasured)} cannot be measured: {why}")
        write_document(options.directory, replace(document, finished=options.mark))
    except (CannotBeDone, OSError) as error:
        print(f"measuring: {error}", file=sys.stderr)
        return 1
    return 0


def _bench(options: argparse.Namespace, terms: Mapping[str, MeasuringTerms]) -> Bench:
    try:
        import torch
    except ImportError as error:
        raise CannotBeDone(f"torch is not installed for {sys.executable}: use the engine's image ({error})") from error
    if options.on == "GPU" and torch.cuda.device_count() < len(terms):
        raise CannotBeDone(f"torch {torch.__version__} sees {torch.cuda.device_count()} of {', '.join(terms)}")
    program = (sys.executable, sys.argv[0])
    return (
        Bench(torch, options.on, terms, program, ON_CPU) if options.on == "CPU" else Bench(torch, "GPU", terms, program)
    )


def _earlier(directory: Path) -> MeasurementDocument:
    try:
        return read_document(directory) or MeasurementDocument()
    except UnreadableDocument as error:
        print(f"measuring: everything is measured anew: {error}", file=sys.stderr)
        return MeasurementDocument()


def supervised(work: Callable[[], int]) -> int:
    """Run `work` in a process of its own, with all that it starts; a signal ends them at once. Its exit status."""
    # Blocked until there is a handler that knows the child.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        status = 1
        try:
            status = work()
        finally:
            sys.stderr.flush()
            os._exit(status)
    # Here too: a signal may come before the child has run at all.
    os.setpgid(child, child)

    def end(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # all have ended by themselves
            os.killpg(child, signal.SIGKILL)
        os._exit(128 + number)

    for each in SIGNALS:
        signal.signal(each, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
