"""Bytes per weight: the dtype that the engine computes in, and the quantisation of its linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput
from uellm.models.exempt import Exempt, read_exempt
from uellm.models.kernels import Kernel
from uellm.models.online import MADE_BY_EARLIER_ENGINES, ONLINE, ONLINE_ROUTED_ALONE
from uellm.models.schemes import METHODS, ROUTED_ALONE, SAME, TOOLS_NAMES, Layouts
from uellm.models.served import check_served
from uellm.models.shown import shown
from uellm.models.storage import SECTION, Storage
from uellm.models.weights import WeightMatrix

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ALIASES = {"float": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}

QUANTIZATIONS = ("auto", "none", *METHODS)
REFUSED = {
    "gguf": "is a format of llama.cpp, which the engine does not serve here: take the model's safetensors",
    "exl2": "is a format of ExLlama, which the engine does not serve",
    "hqq": "is not served by the engine: take another quantisation of the model",
    "aqlm": "is not served by the engine: take another quantisation of the model",
    "marlin": "is not served by the engine any more: take a GPTQ or AWQ checkpoint",
    "quip": "is not served by the engine: take another quantisation of the model",
    **{name: f"is no name that the engine takes: write {own}" for name, own in TOOLS_NAMES.items() if name not in SAME},
}
"""Methods that checkpoints name and the engine refuses."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The width of weights. Matrices are stored as the quantisation has it, everything else in `dtype`."""

    dtype: str
    quantization: str
    """The method, or `none`."""
    layouts: Layouts
    """Modules (None: all) and their layout; the first entry that matches a module counts."""
    exempt: Exempt
    """Modules that are not quantised."""
    differs: bool = False
    """Whether the checkpoint has another width, which the engine converts while it loads."""
    routed_alone: bool = False
    """Whether routed experts alone are quantised."""
    head: bool = False
    """Whether the LM head is quantised."""
    kv_fp8: bool = False
    """Whether the checkpoint declares an FP8 KV cache, which the engine then uses."""
    notes: tuple[str, ...] = ()

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one number of `dtype`."""
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_dtype_bytes(self) -> int:
        """Bytes of one number of the KV cache."""
        return 1 if self.kv_fp8 else self.dtype_bytes

    def size(self, linear: WeightMatrix, path: str) -> int:
        """Bytes of a matrix with its bias; `path` is the full path in the checkpoint."""
        width = self.dtype_bytes
        layout = self.layout(linear, path)
        matrix = linear.weights * width if layout is None else layout.size(linear)
        return matrix + linear.biases * width

    def kernel(self, linear: WeightMatrix, path: str) -> Kernel:
        """The format in which a matrix is multiplied."""
        layout = self.layout(linear, path)
        return "16-bit" if layout is None else layout.kernel

    def layout(self, linear: WeightMatrix, path: str) -> Storage | None:
        """The layout of a matrix; None: it is not quantised."""
        if not self.layouts or not linear.quantizable or path in self.exempt:
            return None
        if self.routed_alone and not linear.routed:
            return None
        return next((layout for names, layout in self.layouts if names is None or path in names), None)


def read_precision(
    config: Mapping[str, Any], dtype: str, quantization: str, *, measured: bool = False, served: bool = True
) -> Precision:
    """The precision that the engine will use for a config.json and the user's settings.

    Raises BadInput for a dtype or quantisation whose sizes are not known here; a checkpoint whose bytes are
    `measured` may have any quantisation that the engine serves. `served`: refuse what vLLM 0.32 does not start with.
    """
    chosen, notes = _dtype(config, dtype)
    section = _section(config)
    method = _method(section, quantization, measured)
    if served:
        check_served(section, method, chosen)
    if quantization == "none" and section:
        notes += (f"quantization none changes nothing: the engine reads the checkpoint, which is made with {method}",)
    if method == "none":
        return Precision(chosen, method, (), Exempt(), notes=notes)
    kv = kv_is_fp8(section, method)
    if kv:
        notes += ("the checkpoint declares an FP8 KV cache, which the engine uses: 1 byte a number",)
    if not section:
        alone = method in ONLINE_ROUTED_ALONE
        layouts: Layouts = ((None, ONLINE[method]),)
        return Precision(chosen, method, layouts, Exempt(), differs=True, routed_alone=alone, notes=notes)
    if method not in METHODS:
        return Precision(chosen, method, (), Exempt(), kv_fp8=kv, notes=notes)
    layouts = METHODS[method](section)
    if all(layout is None for _, layout in layouts):
        notes += (f"{SECTION} does not say how wide its weights are: counted in 16 bits, which is the most",)
    return Precision(
        dtype=chosen,
        quantization=method,
        layouts=layouts,
        exempt=read_exempt(section),
        routed_alone=method in ROUTED_ALONE,
        head=method in ("awq", "gptq") and section.get("lm_head") is True,
        kv_fp8=kv,
        notes=notes,
    )


def with_quantization_file(config: Mapping[str, Any], written: Any) -> Mapping[str, Any]:
    """The config with the content of a `hf_quant_config.json`, as the engine merges it (ModelOpt's older form).

    A quantization_config in config.json itself wins. Raises BadInput for what is no object.
    """
    if config.get("quantization_config"):
        return config
    if not isinstance(written, Mapping) or not isinstance(written.get("quantization"), Mapping):
        raise BadInput("hf_quant_config.json", "must be an object with the object `quantization` in it")
    return {**config, "quantization_config": {"quant_method": "modelopt", **written}}


def kv_is_fp8(section: Mapping[str, Any], method: str) -> bool:
    """Whether the engine makes the KV cache FP8 by the checkpoint's word alone (vllm/utils/torch_utils.py)."""
    scheme = section.get("kv_cache_scheme") or section.get("kv_cache_quant_algo")
    if method not in ("modelopt", "compressed-tensors"):
        return False
    if isinstance(scheme, Mapping):
        return scheme.get("num_bits") == 8 and scheme.get("type") == "float"
    return str(scheme or "").lower().startswith("fp8")


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization_config, flat, with the fields outside it that change it."""
    section = config.get("quantization_config") or config.get("compression_config")
    if section is None or section == {}:
        return {}
    if not isinstance(section, Mapping):
        raise BadInput(SECTION, "must be an object")
    inner = section.get("quantization")
    flat = {**section, **inner} if isinstance(inner, Mapping) else dict(section)
    producer = flat.get("producer")
    made_by = producer.get("name") if isinstance(producer, Mapping) else None
    if flat.get("quant_method") is None and (made_by == "modelopt" or flat.get("quant_algo")):
        if not flat.get("quant_algo"):
            return {}  # its KV cache alone is made for FP8, which the engine then does not look for
        flat["quant_method"] = "modelopt"
    if config.get("expert_dtype") is not None:
        flat.setdefault("expert_dtype", config["expert_dtype"])
    return flat


def _dtype(config: Mapping[str, Any], asked: str) -> tuple[str, tuple[str, ...]]:
    if asked != "auto":
        name = ALIASES.get(asked, asked)
        if name not in DTYPE_BYTES:
            raise BadInput("dtype", f"{shown(asked)} is not one of auto, bfloat16, float16, float32")
        return name, ()
    written = config.get("dtype") or config.get("torch_dtype")
    if written is None:
        # vLLM then takes the 16-bit type that the hardware has.
        return "bfloat16", ("config.json names no dtype: 16 bits a weight are assumed, as vLLM does",)
    name = ALIASES.get(str(written).removeprefix("torch."), str(written).removeprefix("torch."))
    if name not in DTYPE_BYTES:
        raise BadInput(
            "config.torch_dtype", f"{shown(written)} is not known here: set dtype to bfloat16, float16 or float32"
        )
    if name == "float32":
        return "bfloat16", ("config.json says float32, and vLLM serves it in bfloat16; dtype float32 keeps it",)
    return name, ()


def _method(section: Mapping[str, Any], asked: str, measured: bool) -> str:
    asked = TOOLS_NAMES.get(asked, SAME.get(asked, asked))
    if asked in REFUSED:
        raise BadInput("quantization", f"{asked} {REFUSED[asked]}")
    if asked not in (*QUANTIZATIONS, *ONLINE):
        known = ", ".join(dict.fromkeys((*QUANTIZATIONS, *ONLINE)))
        raise BadInput("quantization", f"{shown(asked)} has no known size here: use one of {known}")
    written = _written(section)
    if written is None:
        if asked not in ("auto", "none", *ONLINE):
            raise BadInput(
                "quantization",
                f"{asked} needs a checkpoint made with it, and config has no quantization_config: the engine makes "
                f"{', '.join(name for name in ONLINE if name not in MADE_BY_EARLIER_ENGINES)} itself",
            )
        return "none" if asked == "auto" else asked
    known = SAME.get(written, written)
    if known in REFUSED:
        raise BadInput(f"{SECTION}.quant_method", f"{shown(written)} {REFUSED[known]}")
    if asked not in ("auto", "none", known):
        raise BadInput("quantization", f"is {asked}, but the checkpoint is made with {written}: leave it at auto")
    if known not in QUANTIZATIONS and not measured:
        raise BadInput(
            f"{SECTION}.quant_method",
            f"{shown(written)} has no known size here; known are {', '.join(QUANTIZATIONS[2:])}. The safetensors "
            "headers tell the bytes without it (uellm model DIRECTORY)",
        )
    return known


def _written(section: Mapping[str, Any]) -> str | None:
    if not section:
        return None
    method = section.get("quant_method")
    if method is None:
        raise BadInput(f"{SECTION}.quant_method", "is missing; give it as the model's config.json has it")
    return str(method).lower()
