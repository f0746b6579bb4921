"""The headers of safetensors files: what each tensor is, without reading any.

A file begins with 8 bytes, little-endian: the length of the JSON object that follows, name -> {dtype, shape,
data_offsets}; `__metadata__` is not a tensor. Source: the format's description in huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from uellm.errors import BadInput
from uellm.models.shown import shown

LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000  # the format's own limit, in bytes
INDEX = "model.safetensors.index.json"
# Mistral's own form of the same weights, which the engine leaves alone where the other is there.
CONSOLIDATED = "consolidated"
CONSOLIDATED_SINGLE, CONSOLIDATED_INDEX = "consolidated.safetensors", "consolidated.safetensors.index.json"
DTYPE_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16}
DTYPE_BITS |= {"U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8}
DTYPE_BITS |= {"U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64}


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a header says of a tensor: its dtype, as the format spells it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.ceil(self.numbers * DTYPE_BITS[self.dtype] / 8)


def read_directory(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint: the files of its index, or every .safetensors file where it has none.

    Raises BadInput, naming the file, for what is missing or no header.
    """
    tensors: dict[str, Tensor] = {}
    for path in _files(directory):
        for name, tensor in read_file(path).items():
            if name in tensors:
                raise BadInput(str(path), f"holds {name}, which another file of {directory} holds, too")
            tensors[name] = tensor
    return tensors


def find_tensors(directory: Path) -> dict[str, Tensor] | None:
    """All tensors of a checkpoint, None where the directory holds no safetensors. Raises BadInput for bad files."""
    if any(directory.glob("*.safetensors*")):
        return read_directory(directory)
    if any(directory.glob("*.gguf")):
        raise BadInput(str(directory), "holds GGUF, which the engine does not serve here: take the model's safetensors")
    return None


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises BadInput naming it."""
    try:
        with path.open("rb") as stream:
            return parse_header(_header(stream, str(path)), str(path), path.stat().st_size)
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from error


def parse_header(header: bytes, where: str, file_bytes: int | None = None) -> dict[str, Tensor]:
    """The tensors that a header names; `file_bytes`, where known, must hold them. Raises BadInput naming `where`."""
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise BadInput(where, f"is no safetensors file: its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise BadInput(where, "is no safetensors file: its header is not an object")
    tensors = {name: _tensor(where, name, entry) for name, entry in entries.items() if name != "__metadata__"}
    held = LENGTH_BYTES + len(header) + sum(tensor.size for tensor in tensors.values())
    if file_bytes is not None and file_bytes < held:
        raise BadInput(where, f"is cut short: {file_bytes} bytes, but its header tells of {held}")
    return tensors


def _header(stream: BinaryIO, where: str) -> bytes:
    length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if not 0 < length <= LONGEST_HEADER:
        raise BadInput(where, f"is no safetensors file: it claims a header of {length} bytes")
    header = stream.read(length)
    if len(header) < length:
        raise BadInput(where, f"is cut short: its header has {len(header)} of {length} bytes")
    return header


def _tensor(where: str, name: str, entry: Any) -> Tensor:
    if not isinstance(entry, Mapping):
        raise BadInput(where, f"has a bad header: {name} is not an object")
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if dtype not in DTYPE_BITS:
        raise BadInput(where, f"has a bad header: {name} has the unknown dtype {shown(dtype)}")
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise BadInput(where, f"has a bad header: {name} has the shape {shown(shape)}")
    return Tensor(str(dtype), tuple(shape))


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise BadInput(str(directory), "is no directory")
    index = directory / INDEX
    if index.is_file():
        return [directory / name for name in _indexed(index)]
    found = sorted(directory.glob("*.safetensors"))
    found = [path for path in found if not path.name.startswith(CONSOLIDATED)] or found
    if not found:
        raise BadInput(str(directory), "holds no .safetensors file")
    return found


def _indexed(index: Path) -> list[str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(str(index), f"is no index of safetensors: {error}") from error
    return indexed_files(content, str(index))


def indexed_files(content: Any, where: str) -> list[str]:
    """The files that an index names. Raises BadInput naming `where`."""
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise BadInput(where, "has no weight_map, or an empty one")
    names = {str(name) for name in files.values()}
    for name in names:
        # A checkpoint is somebody else's: its index points nowhere outside.
        if "/" in name or name in ("", ".", ".."):
            raise BadInput(where, f"names the file {name!r}, which is not one beside it")
    return sorted(names)
