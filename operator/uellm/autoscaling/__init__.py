"""How many replicas a service needs. Pure: no clock, no randomness, no input or output."""

from uellm.autoscaling.autoscaler import Autoscaler, Bounds, Decision
from uellm.autoscaling.capacity import Lengths, Replica, ShareOfClass
from uellm.autoscaling.reports import Interval

__all__ = ["Autoscaler", "Bounds", "Decision", "Interval", "Lengths", "Replica", "ShareOfClass"]
