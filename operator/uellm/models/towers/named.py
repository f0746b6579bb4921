"""Encoders whose sizes stand in the engine's code, not in config.json (phi3v.py and phi4mm.py of vLLM)."""

from __future__ import annotations

from collections.abc import Callable

from uellm.models.defaults import class_defaults
from uellm.models.fields import Config
from uellm.models.towers import audio, vision
from uellm.models.towers.blocks import linear

# CLIP ViT-L/14 at 336 pixels; features are those of the last layer but one.
PHI3_CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "patch_size": 14,
    "image_size": 336,
}
PHI3_PATCHES = 4
"""That the projector takes together."""


def phi3(whole: Config, text: int) -> int:
    """Phi-3-vision and Phi-3.5-vision."""
    hidden = PHI3_CLIP["hidden_size"]
    joined = PHI3_PATCHES * hidden
    clip = vision.clip(Config(PHI3_CLIP), whole, text)
    return clip - linear(text, hidden) + linear(text, joined) + 2 * joined


def phi4(whole: Config, text: int) -> int:
    """Phi-4-multimodal in Microsoft's own format: images and sound."""
    images, sounds = (
        Config({}, defaults=class_defaults(f"phi4_multimodal_{part}", nested=True)) for part in ("vision", "audio")
    )
    return vision.phi4(images, whole, text) + audio.phi4(sounds, whole, text)


NAMED: dict[str, Callable[[Config, int], int]] = {"phi3_v": phi3, "phi4mm": phi4}
"""By the model's model_type."""
