"""The planner: from measured devices, a model and a load to a placement with its reasons. It is deterministic.

No I/O, no clock, no randomness. It depends only on numpy, because the launcher runs it inside the engine's image.
"""

from uellm.planner.handover.revalidate import Outlook, outlook, still_holds
from uellm.planner.joining import plan
from uellm.planner.result import Plan

__all__ = ["Outlook", "Plan", "outlook", "plan", "still_holds"]
