"""From a checkpoint's quantization_config to the layout of each of its matrices.

One function a method, named with the source of its fields. A layout of None leaves the modules in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from uellm.errors import BadInput
from uellm.models import storage
from uellm.models.exempt import Exempt, checked, read_exempt
from uellm.models.storage import SECTION, Storage

Layouts = tuple[tuple[Exempt | None, Storage | None], ...]
"""Modules (None: all) and their layout; the first entry that matches a module counts."""

UNQUANTIZED_BITS = 16


def uniform(build: Callable[[Mapping[str, Any]], Storage]) -> Callable[[Mapping[str, Any]], Layouts]:
    """A method with one layout for all modules."""
    return lambda section: ((None, build(section)),)


def fp8(section: Mapping[str, Any]) -> Layouts:
    """FP8; DeepSeek V4 keeps its experts in MXFP4 beside it (`expert_dtype`)."""
    rest = uniform(storage.fp8)(section)
    return ((Exempt(("experts",)), storage.mxfp4(section)), *rest) if section.get("expert_dtype") == "fp4" else rest


def gptq(section: Mapping[str, Any]) -> Layouts:
    """GPTQ; `dynamic` (GPTQModel) gives modules that match an expression their own bits and groups."""
    own = [(Exempt(patterns=(checked(pattern),)), storage.gptq(each)) for pattern, each in gptq_dynamic(section)]
    return (*own, (None, storage.gptq(section)))


def gptq_dynamic(section: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each expression of `dynamic`, and the section as it is for the modules that match it."""
    dynamic = section.get("dynamic")
    for pattern, change in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if not str(pattern).startswith("-:") and isinstance(change, Mapping):
            yield str(pattern).removeprefix("+:"), {**section, **change}


def auto_round(section: Mapping[str, Any]) -> Layouts:
    """Intel's auto-round; `extra_config` names modules, or expressions, with bits of their own (vllm's INC)."""
    own: list[tuple[Exempt | None, Storage | None]] = []
    extra = section.get("extra_config")
    for name, change in extra.items() if isinstance(extra, Mapping) else ():
        if not isinstance(change, Mapping):
            raise BadInput(f"{SECTION}.extra_config.{name}", "must be an object")
        plain = not set(str(name)) & set("*+?^$()[]{}|\\")
        modules = Exempt((str(name),)) if plain else Exempt(patterns=(checked(f".*{name}"),))
        own.append((modules, _rounded({**section, **change})))
    return (*own, (None, _rounded(section)))


def _rounded(section: Mapping[str, Any]) -> Storage | None:
    bits, kind = section.get("bits", 4), str(section.get("data_type") or "int")
    if isinstance(bits, int) and bits >= UNQUANTIZED_BITS:
        return None
    if kind.startswith("mx_fp"):
        return storage.mxfp4(section) if bits == 4 else storage.mxfp8(section)
    if kind.startswith("nv_fp"):
        return storage.nvfp4(section)
    if kind.startswith("fp"):
        group = section.get("group_size")
        return storage.fp8({"weight_block_size": group} if isinstance(group, list | tuple) else {})
    return storage.gptq(section)


def modelopt(section: Mapping[str, Any]) -> Layouts:
    """NVIDIA's Model Optimizer; MIXED_PRECISION lists modules with their algorithms (`quantized_layers`)."""
    algorithm = str(section.get("quant_algo") or "").upper()
    if algorithm != "MIXED_PRECISION":
        return ((None, storage.modelopt(section)),)
    listed = section.get("quantized_layers")
    if not isinstance(listed, Mapping) or not listed:
        raise BadInput(f"{SECTION}.quantized_layers", "is missing or empty; MIXED_PRECISION needs it")
    by_recipe: dict[tuple[str, Any], list[str]] = {}
    for name, recipe in listed.items():
        if not isinstance(recipe, Mapping):
            raise BadInput(f"{SECTION}.quantized_layers.{name}", "must be an object")
        by_recipe.setdefault((str(recipe.get("quant_algo")), recipe.get("group_size")), []).append(str(name))
    found: list[tuple[Exempt | None, Storage | None]] = []
    for (kind, group), modules in by_recipe.items():
        recipe = {"quant_algo": kind} if group is None else {"quant_algo": kind, "group_size": group}
        found.append((Exempt(modules), storage.modelopt(recipe)))
    return (*found, (None, None))


def quark(section: Mapping[str, Any]) -> Layouts:
    """AMD's Quark: one rule for all (`global_quant_config`), and rules by module (`layer_quant_config`)."""
    own: list[tuple[Exempt | None, Storage | None]] = []
    rules = section.get("layer_quant_config")
    for name, rule in rules.items() if isinstance(rules, Mapping) else ():
        own.append((Exempt((str(name),)), storage.quark(rule, f"{SECTION}.layer_quant_config.{name}")))
    return (*own, (None, storage.quark(section.get("global_quant_config"), f"{SECTION}.global_quant_config")))


def torchao(section: Mapping[str, Any]) -> Layouts:
    """PyTorch's torchao: a default, and rules by module."""
    kinds = section.get("quant_type")
    if isinstance(kinds, str):
        return ((None, storage.torchao(kinds)),)
    if not isinstance(kinds, Mapping):
        raise BadInput(f"{SECTION}.quant_type", "must be a name or an object")
    named = kinds.get("default")
    inner = named.get("_data") if isinstance(named, Mapping) else None
    rules = inner.get("module_fqn_to_config") if isinstance(inner, Mapping) else None
    if isinstance(rules, Mapping):
        own = [(Exempt((str(name),)), storage.torchao(rule)) for name, rule in rules.items() if name != "_default"]
        return (*own, (None, storage.torchao(rules.get("_default"))))
    return ((None, storage.torchao(named)),)


def compressed(section: Mapping[str, Any]) -> Layouts:
    """The groups of compressed-tensors, each with the modules that it targets. Names win over the class Linear."""
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise BadInput(f"{SECTION}.config_groups", "is missing or empty; give it as the model's config.json has it")
    found: list[tuple[Exempt | None, Storage | None]] = []
    for name, group in groups.items():
        where = f"{SECTION}.config_groups.{name}"
        if not isinstance(group, Mapping):
            raise BadInput(where, "must be an object")
        if group.get("weights") is None:  # activations or KV cache alone
            continue
        layout = storage.compressed(group, where)
        targets = group.get("targets") or ["Linear"]
        if not isinstance(targets, list | tuple):
            raise BadInput(f"{where}.targets", "must be a list of module names")
        whole = "Linear" in targets
        found.append((None if whole else read_exempt({"ignore": targets}), layout))
    return tuple(sorted(found, key=lambda entry: entry[0] is None))


METHODS: dict[str, Callable[[Mapping[str, Any]], Layouts]] = {
    "fp8": fp8,
    "awq": uniform(storage.awq),
    "gptq": gptq,
    "bitsandbytes": uniform(storage.bitsandbytes),
    "mxfp4": uniform(storage.mxfp4),
    "mxfp8": uniform(storage.mxfp8),
    "fbgemm_fp8": uniform(storage.by_row),
    "modelopt": modelopt,
    "compressed-tensors": compressed,
    "auto-round": auto_round,
    "quark": quark,
    "torchao": torchao,
    "experts_int8": uniform(storage.by_row),
}
# Other names that the engine has for a method above.
SAME = {
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "gptq_marlin": "gptq",
    "auto_gptq": "gptq",
    "gpt_oss_mxfp4": "mxfp4",
    "modelopt_fp4": "modelopt",
    "modelopt_mixed": "modelopt",
    "modelopt_mxfp8": "modelopt",
    "compressed_tensors": "compressed-tensors",
    "inc": "auto-round",
    "deepseek_v4_fp8": "fp8",
}
# Names that tools have for a method, and that --quantization of the engine does not take.
TOOLS_NAMES = {
    "gptqmodel": "gptq",
    "compressed_tensors": "compressed-tensors",
    "auto_round": "auto-round",
    "intel/auto-round": "auto-round",
}
# The engine starts with these only where --allow-deprecated-quantization is set.
DEPRECATED = ("fbgemm_fp8", "fp_quant")
ROUTED_ALONE = ("mxfp4", "experts_int8")  # methods that the engine applies to experts alone
