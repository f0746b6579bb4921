"""The policies by which layers are placed: their names, and how each weighs time against GPUs.

A policy minimises `time * seconds + devices * GPUs`. HELR weighs both, LR time ten times as much, HE the number of GPUs
alone (time only breaks ties). BGS (greedy best fit) and Even (vLLM's own split) are there for comparison; where they
have to be weighed, they count as HELR.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

PlacementPolicy = Literal["HELR", "HE", "LR", "BGS", "Even"]
PLACEMENT_POLICIES: tuple[str, ...] = get_args(PlacementPolicy)
DEFAULT_PLACEMENT_POLICY = "HELR"


class PolicyWeights(NamedTuple):
    """What a second and a GPU count for; a1 and a2 in the cost of `uellm place`."""

    time: float
    devices: float


FIXED_WEIGHTS = {"HE": PolicyWeights(0.0, 1.0), "LR": PolicyWeights(10.0, 1.0)}
"""Of the policies that `uellm place` does not take from the instance."""

_BOTH = PolicyWeights(1.0, 1.0)


def policy_weights(policy: str) -> PolicyWeights:
    """The weights of a policy."""
    return FIXED_WEIGHTS.get(policy, _BOTH)
