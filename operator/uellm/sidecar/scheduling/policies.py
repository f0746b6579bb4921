"""All policies by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.fairness import Fairness
from uellm.sidecar.scheduling.order import Order, Saturation, Sorted, earliest_deadline, first_come, shortest_predicted
from uellm.sidecar.scheduling.paper_batches import RULES, Batches
from uellm.sidecar.scheduling.sloodbs import SloOdbs
from uellm.sidecar.scheduling.types import Options

Make = Callable[[EngineView, Options, Fairness], Order]


@dataclass(frozen=True, slots=True)
class Policy:
    """An order and the guards that apply to it."""

    make: Make
    """Creates the order."""
    guarded: bool = True
    """Gate, KV admission and pacing apply, as the options say."""
    bounded: bool = True
    """The bound on requests in flight applies."""


def _sorted(key: Callable[..., tuple[float, ...]], view: EngineView, options: Options, fairness: Fairness) -> Order:
    return Sorted(key)


def _saturation(view: EngineView, options: Options, fairness: Fairness) -> Order:
    return Saturation(view)


def _batches(name: str, view: EngineView, options: Options, fairness: Fairness) -> Order:
    return Batches(RULES[name], view)


POLICIES: dict[str, Policy] = {
    "SLO-ODBS": Policy(SloOdbs),
    "EDF": Policy(partial(_sorted, earliest_deadline)),
    "SJF": Policy(partial(_sorted, shortest_predicted)),
    "FCFS": Policy(partial(_sorted, first_come)),
    "llm-d": Policy(_saturation, guarded=False),
    "engine-only": Policy(partial(_sorted, first_come), guarded=False, bounded=False),
    **{name: Policy(partial(_batches, name), guarded=False) for name in RULES},
}
"""A service can choose one of the first four. The others are for comparison."""
