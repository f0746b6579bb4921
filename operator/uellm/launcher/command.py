"""From the plan and the binding to the engine's command line and environment. Pure."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from uellm.errors import PlanError
from uellm.launcher import cpu
from uellm.launcher.compiled import cache_variables
from uellm.launcher.group.part import GroupPart
from uellm.planner.handover import late_binding
from uellm.planner.handover.late_binding import Binding
from uellm.planner.handover.plan_document import PlannedEngine
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.refused_flags import DECIDED_ENVIRONMENT, REFUSED_ENVIRONMENT, refused_args
from uellm.planner.vllm.speculation import speculation_of

ENGINE_MODULE = "vllm.entrypoints.cli.main"
# Streams in flight finish in this time after SIGTERM; longer ones were given the preStop hook's time.
SHUTDOWN_TIMEOUT_S = 20


@dataclass(frozen=True)
class EngineCommand:
    """What is to be executed. `settings` are the variables of `environment` that the launcher itself decided."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    settings: Mapping[str, str]


def engine_command(
    engine: PlannedEngine,
    binding: Binding,
    *,
    platform: str,
    listen: tuple[str, int],
    environment: Mapping[str, str],
    cpus: Collection[int],
    compiled: Path | None = None,
    part: GroupPart | None = None,
) -> EngineCommand:
    """The engine's command. Raises PlanError RefusedArgument where a user's setting would break the pod's contract.

    `cpus`: those this process may use; they matter to the CPU engine alone. `compiled`: where compiled code is kept
    beyond the container; None for nowhere. `part`: this pod's in an engine that spans nodes.
    """
    on_cpu = platform == "cpu"
    settings = _settings(engine, binding, environment, cpus if on_cpu else None, part)
    settings |= cache_variables(compiled, environment)
    argv = _argv(engine, binding, listen, part, on_cpu=on_cpu)
    for name, instead in REFUSED_ENVIRONMENT.items():
        if environment.get(name):
            raise PlanError("RefusedArgument", f"engine.env.{name} is not allowed: {instead}")
    merged = {name: value for name, value in environment.items() if name not in DECIDED_ENVIRONMENT}
    return EngineCommand(argv, {**merged, **settings}, settings)


def _settings(
    engine: PlannedEngine,
    binding: Binding,
    environment: Mapping[str, str],
    cpus: Collection[int] | None,
    part: GroupPart | None,
) -> dict[str, str]:
    decided: dict[str, str] = {} if part is None else part.decided()
    own = binding.order if part is None else part.own(binding)
    if cpus is None:
        decided["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    if engine.loads_adapters:
        # The routes for it are open to loopback alone: the sidecar refuses them to clients.
        decided["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if binding.pipeline > 1:
        decided["VLLM_PP_LAYER_PARTITION"] = ",".join(str(count) for count in binding.layers)
    # With every rank in this pod, their rendezvous needs no address that others can reach.
    alone = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    defaults = {**(alone if part is None else part.defaults()), "VLLM_NO_USAGE_STATS": "1"}
    if engine.model.startswith("/") and not _draft_is_on_hub(engine):
        defaults["HF_HUB_OFFLINE"] = "1"
    if cpus is not None:
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = cpu.thread_binding(cpus, len(own))
    return decided | {name: environment.get(name) or value for name, value in defaults.items()}


def _draft_is_on_hub(engine: PlannedEngine) -> bool:
    """Whether the engine has to download the model or head that drafts for speculation."""
    try:
        speculation = speculation_of(UserArgs(engine.args))
    except PlanError:  # the engine itself says what is wrong with it
        return False
    return speculation is not None and bool(speculation.model) and not speculation.model.startswith("/")


def _argv(
    engine: PlannedEngine, binding: Binding, listen: tuple[str, int], part: GroupPart | None, *, on_cpu: bool
) -> tuple[str, ...]:
    model = engine.model
    if not model or model.startswith("-"):
        raise PlanError("BadPlan", f"plan.json: engine.model is {model!r}, neither a name nor a path")
    args = list(late_binding.engine_args(engine, binding))
    for flag, instead in refused_args(args):
        raise PlanError("RefusedArgument", f"engine.args: {flag} is not allowed: {instead}")
    planned = UserArgs(args)
    if on_cpu:
        args += cpu.default_args(planned)
    ours = ["--served-model-name", engine.served_name] if engine.served_name else []
    ours += ["--revision", engine.revision] if engine.revision else []
    ours += ["--tensor-parallel-size", str(binding.tensor), "--pipeline-parallel-size", str(binding.pipeline)]
    ours += [] if "--shutdown-timeout" in planned.flags else ["--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S)]
    if "--disable-access-log-for-endpoints" not in planned.flags:
        # The sidecar asks every second, which would fill the log.
        ours += ["--disable-access-log-for-endpoints", "/health,/metrics"]
    ours += ["--host", listen[0], "--port", str(listen[1])]
    ours += [] if part is None else part.flags()
    return (sys.executable, "-m", ENGINE_MODULE, "serve", model, *args, *ours)
