"""Models: from a config.json and a checkpoint's headers to bytes by layer. Standard library only.

Everything is pure except `find_tensors` and `read_directory`, which read files.
"""

from uellm.models.architecture import Architecture
from uellm.models.engine import with_engine_facts
from uellm.models.mistral_format import PARAMS, config_of_params
from uellm.models.precision import with_quantization_file
from uellm.models.reading import read_architecture
from uellm.models.remote_code import needs_remote_code
from uellm.models.safetensors import Tensor, find_tensors, read_directory
from uellm.models.tasks import POOLING_TASKS, ModelTasks, Task, tasks_of
from uellm.models.towers.encoders import EncoderWidths

__all__ = [
    "PARAMS",
    "POOLING_TASKS",
    "Architecture",
    "EncoderWidths",
    "ModelTasks",
    "Task",
    "Tensor",
    "config_of_params",
    "find_tensors",
    "needs_remote_code",
    "read_architecture",
    "read_directory",
    "tasks_of",
    "with_engine_facts",
    "with_quantization_file",
]
