"""Which devices the container has, and under which driver, power limit and clocks, as nvidia-smi tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping

from uellm.errors import CannotBeDone
from uellm.measuring.document import Clocks, MeasuringTerms

VISIBLE_DEVICES_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
# The driver's first start on a node without persistence mode takes seconds a GPU.
TIMEOUT_S = 60.0
# `power.limit` is what software set: a board's management may enforce a lower one, and the profiler reads that.
_TERMS = "uuid,driver_version,enforced.power.limit"
_CLOCKS = "uuid,clocks.sm,clocks.mem"
_NO_LIST = ("", "all", "none", "void")


def devices_of_gpu_node(program: str = "nvidia-smi") -> dict[str, MeasuringTerms]:
    """The GPUs that the driver shows to this container, by uuid, in its order. Raises CannotBeDone for none."""
    try:
        command = [program, f"--query-gpu={_TERMS}", "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotBeDone(f"nvidia-smi does not list the GPUs: {error}") from error
    found = parse_terms(answer.stdout)
    if not found:
        raise CannotBeDone("nvidia-smi lists no GPU: the device plugin gave this container none")
    return found


def devices_of_simulated_node(environment: Mapping[str, str] = os.environ) -> dict[str, MeasuringTerms]:
    """The simulated devices that the device plugin gave to this container. Raises CannotBeDone for none."""
    given = environment.get(VISIBLE_DEVICES_VARIABLE, "")
    if given in _NO_LIST:
        raise CannotBeDone(f"{VISIBLE_DEVICES_VARIABLE} names no device: the device plugin gave this container none")
    return {uuid.strip(): MeasuringTerms() for uuid in given.split(",")}


def parse_terms(text: str) -> dict[str, MeasuringTerms]:
    """The answer to the query, by uuid.

    >>> parse_terms("GPU-a, 580.95.05, 700.00")
    {'GPU-a': MeasuringTerms(driver_version='580.95.05', power_limit_watts=700)}
    """
    rows = (_fields(line) for line in text.splitlines())
    return {row[0]: MeasuringTerms(row[1], _integer(row[2])) for row in rows if len(row) == 3}


def parse_clocks(text: str) -> dict[str, Clocks]:
    """The answer to the query of clocks, by uuid."""
    rows = (_fields(line) for line in text.splitlines())
    return {row[0]: Clocks(_integer(row[1]), _integer(row[2])) for row in rows if len(row) == 3}


def clocks_under(load: Callable[[], object], uuid: str, program: str = "nvidia-smi") -> Clocks:
    """The clocks of a GPU while `load` runs over and over; unknown where nvidia-smi does not tell."""
    command = [program, f"--id={uuid}", f"--query-gpu={_CLOCKS}", "--format=csv,noheader,nounits"]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            while process.poll() is None:
                load()
            answer = process.stdout.read() if process.stdout else ""
    except OSError:
        return Clocks()
    return parse_clocks(answer).get(uuid, Clocks())


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split(",")]


def _integer(text: str) -> int | None:
    try:
        return round(float(text))
    except ValueError:
        return None  # [N/A]
