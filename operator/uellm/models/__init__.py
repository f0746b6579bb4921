"""Models: from a config.json to bytes by layer. Pure; standard library alone."""

from uellm.models.architecture import Architecture
from uellm.models.reading import read_architecture

__all__ = ["Architecture", "read_architecture"]
