"""What a model hub says of a model: its configuration and the headers of its tensors, never its weights."""

from uellm.hub.facts import ModelFacts, Refusal
from uellm.hub.lookup import look_up
from uellm.hub.transport import HubSettings

__all__ = ["HubSettings", "ModelFacts", "Refusal", "look_up"]
