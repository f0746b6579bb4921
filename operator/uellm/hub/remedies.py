"""What the sentences of a refusal tell a person to set: it depends on where that person has asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remedies:
    """Names of the settings, as they fit into a sentence."""

    token: str
    """Where the hub's token comes from."""
    variables: str
    """Follows the names of variables: where they are set; empty for the environment of the command."""
    instead: str = ", or put the model's config.json into spec.model.config"
    """What else helps where the hub cannot be reached."""

    @property
    def network(self) -> str:
        """What to do where the hub cannot be reached."""
        return f"set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy{self.variables}{self.instead}"


OF_COMMANDS = Remedies("HF_TOKEN", "")
OF_SERVICES = Remedies("spec.model.tokenSecretRef", " in spec.engine.env")
"""For who writes an LLMService."""

_BY_HAND = ", or fill the volume elsewhere with `uellm fetch`"
OF_FETCH = Remedies("HF_TOKEN", "", _BY_HAND)
OF_DOWNLOADS = Remedies("spec.model.tokenSecretRef", " in spec.engine.env", _BY_HAND)
"""For who writes an LLMService with a cache."""
