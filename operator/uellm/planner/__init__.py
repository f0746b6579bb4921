"""The planner: measured devices, a model and a load in; a placement with its reasons out. Always the same answer.

No I/O, no clock, no randomness. It needs numpy and nothing else, for the launcher runs it inside the engine's image.
"""

from uellm.planner.decision import plan
from uellm.planner.handover.revalidate import Outlook, outlook, still_holds
from uellm.planner.result import Plan

__all__ = ["Outlook", "Plan", "outlook", "plan", "still_holds"]
