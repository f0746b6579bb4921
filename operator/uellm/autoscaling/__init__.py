"""How many replicas a service needs. Pure: no clock, no randomness, no input or output."""

from uellm.autoscaling.autoscaler import LEARN_S, Autoscaler, Bounds, ReplicaDecision
from uellm.autoscaling.capacity import MeanLengths, ReplicaEngine, ShareOfClass
from uellm.autoscaling.reports import Interval

__all__ = [
    "LEARN_S",
    "Autoscaler",
    "Bounds",
    "Interval",
    "MeanLengths",
    "ReplicaDecision",
    "ReplicaEngine",
    "ShareOfClass",
]
