"""Models: from a config.json, and a checkpoint's headers, to bytes by layer. Standard library alone.

All but `safetensors.read_directory`, which reads files, is pure.
"""

from uellm.models.architecture import Architecture
from uellm.models.reading import read_architecture
from uellm.models.safetensors import Tensor, read_directory

__all__ = ["Architecture", "Tensor", "read_architecture", "read_directory"]
