"""The planner's call, as it runs in a worker process: values in, values out."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading

from uellm.errors import BadInput, PlanError
from uellm.planner import outlook, plan, still_holds
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.planning.choose import Evaluation, Failure


def evaluate(request: PlanRequest, incumbent: Plan | None, hardware: tuple[NodeOffer, ...]) -> Evaluation:
    """Plan anew, and look at the incumbent on what is offered and on the `hardware` as such.

    The incumbent is held to one replica: how many of them find a place is for the scheduler to say, pod by pod.
    Errors come back as values, for an exception with two arguments does not survive the way between processes.
    """
    broken = broken_hardware = None
    if incumbent is not None:
        alone = dataclasses.replace(request, replicas=1)
        broken = _broken(incumbent, alone)
        broken_hardware = _broken(incumbent, dataclasses.replace(alone, nodes=hardware)) if broken else None
    try:
        fresh = plan(request)
        if incumbent is None:
            return Evaluation(fresh)
        # By the same measure, for what is predicted was predicted of the hardware as it was then.
        before, after = outlook(incumbent, request), outlook(fresh, request)
        return Evaluation(fresh, None, broken, broken_hardware, before, after)
    except PlanError as error:
        return Evaluation(None, Failure(error.reason, str(error)), broken, broken_hardware)
    except BadInput as error:
        return Evaluation(None, Failure("InvalidOverride", str(error)), broken, broken_hardware)


def _broken(incumbent: Plan, request: PlanRequest) -> str | None:
    refusal = still_holds(incumbent, request)
    return None if refusal is None else sentence(refusal)


def end_with_parent() -> None:
    """Start of a worker: it ends when the process that started it does, even if that was killed outright."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()
