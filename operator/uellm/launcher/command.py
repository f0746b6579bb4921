"""From the plan and the binding to the engine's command line and environment. Pure, but for the machine's figures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uellm.errors import PlanError
from uellm.launcher import cpu
from uellm.planner.latebind import Binding
from uellm.planner.refused_args import flag_name, refused_args

ENGINE_MODULE = "vllm.entrypoints.cli.main"
KV_FLAG = "--kv-cache-memory-bytes"
# Streams in flight finish in this time after SIGTERM; longer ones were given the preStop hook's time.
SHUTDOWN_TIMEOUT_S = 20
# Another key than the sidecar's would turn away the sidecar itself.
REFUSED_ENVIRONMENT = ("VLLM_API_KEY",)


@dataclass(frozen=True)
class Machine:
    """The figures of this machine that the CPU engine's settings depend on."""

    cpus: Callable[[], Sequence[int]] = field(default=lambda: sorted(os.sched_getaffinity(0)))
    available_memory_bytes: Callable[[], int] = cpu.available_memory_bytes


@dataclass(frozen=True)
class EngineCommand:
    """What is to be executed. `settings` are the variables of `environment` that the launcher itself decided."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    settings: Mapping[str, str]


def engine_command(
    document: Mapping[str, Any],
    binding: Binding,
    *,
    listen: tuple[str, int],
    environment: Mapping[str, str],
    machine: Machine | None = None,
) -> EngineCommand:
    """The engine's command. Raises PlanError RefusedArgument where a user's setting would break the pod's contract."""
    on_cpu = document["platform"] == "cpu"
    settings = _settings(document, binding, environment, on_cpu=on_cpu, machine=machine or Machine())
    argv = _argv(document["engine"], binding, listen, on_cpu=on_cpu, machine=machine or Machine())
    for name in REFUSED_ENVIRONMENT:
        if environment.get(name):
            raise PlanError("RefusedArgument", f"engine.env.{name}: use spec.auth.apiKeysSecretRef instead")
    merged = {name: value for name, value in environment.items() if name not in _DECIDED}
    return EngineCommand(argv, {**merged, **settings}, settings)


_DECIDED = ("CUDA_VISIBLE_DEVICES", "VLLM_PP_LAYER_PARTITION")


def _settings(
    document: Mapping[str, Any], binding: Binding, environment: Mapping[str, str], *, on_cpu: bool, machine: Machine
) -> dict[str, str]:
    decided: dict[str, str] = {}
    if not on_cpu:
        decided["CUDA_VISIBLE_DEVICES"] = ",".join(binding.order)
    if binding.pipeline > 1:
        decided["VLLM_PP_LAYER_PARTITION"] = ",".join(str(count) for count in binding.layers)
    # Every rank is in this pod, so their rendezvous needs no address that others can reach.
    defaults = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "VLLM_NO_USAGE_STATS": "1"}
    if str(document["engine"]["model"]).startswith("/"):
        defaults["HF_HUB_OFFLINE"] = "1"
    if on_cpu:
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = cpu.thread_binding(machine.cpus(), len(binding.order))
    return decided | {name: environment.get(name) or value for name, value in defaults.items()}


def _argv(
    engine: Mapping[str, Any], binding: Binding, listen: tuple[str, int], *, on_cpu: bool, machine: Machine
) -> tuple[str, ...]:
    model = str(engine["model"])
    if not model or model.startswith("-"):
        raise PlanError("BadPlan", f"plan.json: engine.model is {model!r}, neither a name nor a path")
    args = [str(argument) for argument in engine.get("args") or ()]
    for flag, instead in refused_args(args):
        raise PlanError("RefusedArgument", f"engine.args: {flag} is not allowed: {instead}")
    flags = [flag_name(argument) for argument in args]
    if on_cpu:
        args = _hold_kv(args, len(binding.order), machine) + cpu.default_args(args, flags)
    ours = ["--served-model-name", str(engine["servedName"])] if engine.get("servedName") else []
    ours += ["--revision", str(engine["revision"])] if engine.get("revision") else []
    ours += ["--tensor-parallel-size", str(binding.tensor), "--pipeline-parallel-size", str(binding.pipeline)]
    ours += [] if "--shutdown-timeout" in flags else ["--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S)]
    ours += ["--host", listen[0], "--port", str(listen[1])]
    return (sys.executable, "-m", ENGINE_MODULE, "serve", model, *args, *ours)


def _hold_kv(args: Sequence[str], ranks: int, machine: Machine) -> list[str]:
    """The arguments with the KV bytes held to this machine's memory; a value that is not plain bytes is kept."""
    held = list(args)
    for index, argument in enumerate(args):
        flag, _, attached = argument.partition("=")
        if flag_name(argument) != KV_FLAG:
            continue
        value = attached or (args[index + 1] if index + 1 < len(args) else "")
        if value.isdecimal():
            bytes_held = str(cpu.kv_bytes(int(value), machine.available_memory_bytes(), ranks))
            held[index if attached else index + 1] = f"{flag}={bytes_held}" if attached else bytes_held
    return held
