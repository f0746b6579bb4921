"""The devices as `nvidia-smi` lists them: their uuids, and what each of them is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace

from uellm.hardware import Device

# The driver's first start on a node without persistence mode takes seconds a GPU.
TIMEOUT_S = 60.0
QUERY = ("--query-gpu=uuid,memory.total,compute_cap", "--format=csv,noheader,nounits")

_MIB = 1 << 20
_GPU_LINE = re.compile(r"^GPU (?P<index>\d+): (?P<product>.*?) *\(UUID: (?P<uuid>[^)\s]+)\)")
_MIG_LINE = re.compile(r"^\s+(?P<slice>MIG \S+).*\(UUID: (?P<uuid>[^)\s]+)\)")


def run_nvidia_smi(program: str, *arguments: str) -> tuple[str, str]:
    """Its output, and the problem that prevented one; one of them is empty."""
    try:
        answer = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    if answer.returncode != 0:
        lines = (answer.stderr or answer.stdout).strip().splitlines()
        return "", f"exit status {answer.returncode}" + (f", {lines[0]}" if lines else "")
    return answer.stdout, ""


def parse_nvidia_smi(text: str) -> tuple[Device, ...]:
    """The devices of `nvidia-smi -L`, with memory 0, which it does not list.

    A GPU that is cut into MIG slices is listed by those, named as NVML names them, and not by itself.
    """
    devices: list[Device] = []
    gpu: Device | None = None
    for line in text.splitlines():
        if match := _GPU_LINE.match(line):
            gpu = Device(match["uuid"], int(match["index"]), match["product"], 0)
            devices.append(gpu)
        elif (match := _MIG_LINE.match(line)) and gpu is not None:
            if gpu in devices:
                devices.remove(gpu)
            devices.append(replace(gpu, uuid=match["uuid"], product=f"{gpu.product} {match['slice']}", mig=True))
    return tuple(devices)


def device_facts(program: str, listed: Sequence[Device]) -> tuple[Device, ...]:
    """The devices with memory and compute capability, as far as the driver reports them."""
    output, _ = run_nvidia_smi(program, *QUERY)
    figures = parse_query(output)
    return tuple(
        replace(device, memory_bytes=figures[device.uuid][0], compute_capability=figures[device.uuid][1])
        if device.uuid in figures
        # Slices have no line of their own; by their product, their class in the plan knows their memory.
        else replace(device, product=device.product if device.mig else "")
        for device in listed
    )


def parse_query(text: str) -> dict[str, tuple[int, str]]:
    """By uuid: bytes of memory and the compute capability, of the output of `QUERY`."""
    found = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[1].isdecimal():
            found[fields[0]] = (int(fields[1]) * _MIB, fields[2])
    return found
