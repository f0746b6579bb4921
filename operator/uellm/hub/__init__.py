"""What a model hub says of a model: its configuration and the headers of its tensors, never its weights."""

from uellm.hub.connection import HubSettings
from uellm.hub.facts import LookUpRefusal, ModelFacts
from uellm.hub.lookup import look_up

__all__ = ["HubSettings", "LookUpRefusal", "ModelFacts", "look_up"]
