"""What a model hub or a directory says of a model: its configuration and the headers of its tensors, never its weights.

Only `connection` and `lookup` need httpx; the rest is imported by programs that look nothing up.
"""

from uellm.hub.facts import DraftFacts, LookUpRefusal, ModelFacts

__all__ = ["DraftFacts", "LookUpRefusal", "ModelFacts"]
