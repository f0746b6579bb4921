"""Bytes per weight: the dtype that the engine computes in, and the quantisation of its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput
from uellm.models import storage
from uellm.models.exempt import Exempt, read_exempt
from uellm.models.kernels import Kernel
from uellm.models.storage import SECTION, Storage
from uellm.models.weights import WeightMatrix

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ALIASES = {"float": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}

LAYOUTS: dict[str, Callable[[Mapping[str, Any]], Storage]] = {
    "fp8": storage.fp8,
    "awq": storage.awq,
    "gptq": storage.gptq,
    "bitsandbytes": storage.bitsandbytes,
    "mxfp4": storage.mxfp4,
    "fbgemm_fp8": storage.by_row,
    "modelopt": storage.modelopt,
}
QUANTIZATIONS = ("auto", "none", *LAYOUTS, "compressed-tensors")
# Other names that checkpoints and engines have for a layout above.
SAME = {
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "gptq_marlin": "gptq",
    "auto_gptq": "gptq",
    "gptqmodel": "gptq",
    "gpt_oss_mxfp4": "mxfp4",
    "modelopt_fp4": "modelopt",
    "compressed_tensors": "compressed-tensors",
}
IN_FLIGHT = ("fp8", "bitsandbytes")  # the engine makes these itself while it loads a 16-bit checkpoint


@dataclass(frozen=True, slots=True)
class Precision:
    """The width of weights. Matrices are stored as the quantisation has it, everything else in `dtype`."""

    dtype: str
    quantization: str
    """The method, or `none`."""
    layouts: tuple[tuple[Exempt | None, Storage], ...]
    """Modules (None: all) and their layout; the first entry that matches a module counts."""
    exempt: Exempt
    """Modules that are not quantised."""
    differs: bool = False
    """Whether the checkpoint has another width, which the engine converts while it loads."""
    head: bool = False
    """Whether the LM head is quantised."""
    notes: tuple[str, ...] = ()

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one number of `dtype`."""
        return DTYPE_BYTES[self.dtype]

    def size(self, linear: WeightMatrix, path: str) -> int:
        """Bytes of a matrix with its bias; `path` is the full path in the checkpoint."""
        width = self.dtype_bytes
        layout = self._layout(linear, path) if self.layouts and linear.quantizable else None
        matrix = linear.weights * width if layout is None else layout.size(linear)
        return matrix + linear.biases * width

    def kernel(self, linear: WeightMatrix, path: str) -> Kernel:
        """The format in which a matrix is multiplied."""
        layout = self._layout(linear, path) if self.layouts and linear.quantizable else None
        return "16-bit" if layout is None else layout.kernel

    def _layout(self, linear: WeightMatrix, path: str) -> Storage | None:
        if self.quantization == "mxfp4" and not linear.routed:  # the engine knows MXFP4 for experts alone
            return None
        if path in self.exempt:
            return None
        return next((layout for names, layout in self.layouts if names is None or path in names), None)


def read_precision(config: Mapping[str, Any], dtype: str, quantization: str, *, measured: bool = False) -> Precision:
    """The precision that the engine will use for a config.json and the user's settings.

    Raises BadInput for a dtype or quantisation whose sizes are not known here; a checkpoint whose bytes are
    `measured` may have any quantisation.
    """
    chosen, notes = _dtype(config, dtype)
    section = config.get("quantization_config")
    if section is not None and not isinstance(section, Mapping):
        raise BadInput(SECTION, "must be an object")
    section = section or {}
    method = _method(section, quantization, measured)
    if method == "none":
        return Precision(chosen, method, (), Exempt(), differs=bool(section), notes=notes)
    if method not in QUANTIZATIONS:
        return Precision(chosen, method, (), Exempt(), notes=notes)
    return Precision(
        dtype=chosen,
        quantization=method,
        layouts=_groups(section) if method == "compressed-tensors" else ((None, LAYOUTS[method](section)),),
        exempt=read_exempt(section),
        differs=not section,
        head=method in ("awq", "gptq") and section.get("lm_head") is True,
        notes=notes,
    )


def _dtype(config: Mapping[str, Any], asked: str) -> tuple[str, tuple[str, ...]]:
    if asked != "auto":
        name = ALIASES.get(asked, asked)
        if name not in DTYPE_BYTES:
            raise BadInput("dtype", f"{asked!r} is not one of auto, bfloat16, float16, float32")
        return name, ()
    written = config.get("dtype") or config.get("torch_dtype")
    if written is None:
        # vLLM then takes the 16-bit type that the hardware has.
        return "bfloat16", ("config.json names no dtype: 16 bits a weight are assumed, as vLLM does",)
    name = ALIASES.get(str(written).removeprefix("torch."), str(written).removeprefix("torch."))
    if name not in DTYPE_BYTES:
        raise BadInput(
            "config.torch_dtype", f"{written!r} is not known here: set dtype to bfloat16, float16 or float32"
        )
    if name == "float32":
        return name, ("config.json says float32, and so it is served: dtype bfloat16 would take half the memory",)
    return name, ()


def _method(section: Mapping[str, Any], asked: str, measured: bool) -> str:
    asked = SAME.get(asked, asked)
    if asked not in QUANTIZATIONS:
        raise BadInput("quantization", f"{asked!r} has no known size here: use one of {', '.join(QUANTIZATIONS)}")
    written = _written(section)
    if asked == "none":
        return asked
    if written is None:
        if asked not in ("auto", *IN_FLIGHT):
            raise BadInput(
                "quantization", f"{asked} needs a checkpoint made with it, and config has no quantization_config"
            )
        return "none" if asked == "auto" else asked
    known = SAME.get(written, written)
    if asked not in ("auto", known):
        raise BadInput("quantization", f"is {asked}, but the checkpoint is made with {written}: leave it at auto")
    if known not in QUANTIZATIONS and not measured:
        raise BadInput(
            f"{SECTION}.quant_method",
            f"{written!r} has no known size here; known are {', '.join(QUANTIZATIONS[2:])}. The safetensors headers "
            "tell the bytes without it (uellm model DIRECTORY)",
        )
    return known


def _written(section: Mapping[str, Any]) -> str | None:
    if not section:
        return None
    method = section.get("quant_method")
    if method is None:
        raise BadInput(f"{SECTION}.quant_method", "is missing; give it as the model's config.json has it")
    return str(method).lower()


def _groups(section: Mapping[str, Any]) -> tuple[tuple[Exempt | None, Storage], ...]:
    """The groups of compressed-tensors, each with the modules that it targets."""
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise BadInput(f"{SECTION}.config_groups", "is missing or empty; give it as the model's config.json has it")
    found: list[tuple[Exempt | None, Storage]] = []
    for name, group in groups.items():
        where = f"{SECTION}.config_groups.{name}"
        if not isinstance(group, Mapping):
            raise BadInput(where, "must be an object")
        if group.get("weights") is None:  # activations or KV cache alone
            continue
        layout = storage.compressed(group["weights"], f"{where}.weights")
        targets = group.get("targets") or ["Linear"]
        if not isinstance(targets, list | tuple):
            raise BadInput(f"{where}.targets", "must be a list of module names")
        whole = "Linear" in targets
        found.append((None if whole else read_exempt({"ignore": targets}), layout))
    # Names win over the class, as the engine looks them up.
    return tuple(sorted(found, key=lambda entry: entry[0] is None))
