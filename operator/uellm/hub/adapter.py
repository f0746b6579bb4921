"""What is known of a LoRA adapter before it is loaded, and why the engine would refuse it.

The rules are those of vLLM's PEFTHelper (vllm/lora/peft_helper.py) and of its loader (vllm/lora/lora_model.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.documents import UnreadableDocument
from uellm.models import Tensor
from uellm.models.shown import shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OTHER_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")
LARGEST_RANK = 512
MOST_WIDTHS = 64
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_CLASSIFIERS = ("classifier", "score")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_PART = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight$")
_NAME = "the facts of an adapter"


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a planner must know of an adapter, and what identifies it."""

    name: str
    """In requests."""
    source: str
    """Its URI, with `@` and the revision where it is on a hub."""
    commit: str
    """The commit that the revision stood for; empty for a directory."""
    rank: int
    """The largest of its modules."""
    bytes: int
    """Of its weights."""
    base: str
    """The model that it says it was trained on; empty where it does not say."""
    layers: int
    """The last layer that it has weights for, counted from 1; 0: none."""
    widths: tuple[tuple[str, int, int], ...] = ()
    """Module, inputs and outputs of the layers' attention and MLP."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "name": self.name,
            "source": self.source,
            "commit": self.commit,
            "rank": self.rank,
            "bytes": self.bytes,
            "base": self.base,
            "layers": self.layers,
            "widths": [list(each) for each in self.widths],
        }

    @classmethod
    def from_dict(cls, data: Any) -> AdapterFacts:
        """The inverse of `to_dict`, each field checked: it comes out of a pod. Raises UnreadableDocument."""
        if not isinstance(data, dict):
            raise UnreadableDocument(_NAME, "they are no object")
        texts = [data.get(name) for name in ("name", "source", "commit", "base")]
        numbers = [data.get(name) for name in ("rank", "bytes", "layers")]
        if not all(isinstance(each, str) and len(each) <= 1024 and each.isprintable() for each in texts):
            raise UnreadableDocument(_NAME, "a text of them is none")
        if not all(type(each) is int and 0 <= each < 1 << 50 for each in numbers):
            raise UnreadableDocument(_NAME, "a number of them is none")
        name, source, commit, base = map(str, texts)
        rank, size, layers = (int(str(each)) for each in numbers)
        return cls(name, source, commit, rank, size, base, layers, _widths(data.get("widths")))


def _widths(entries: Any) -> tuple[tuple[str, int, int], ...]:
    found = entries if isinstance(entries, list) and len(entries) <= MOST_WIDTHS else []
    if not all(
        isinstance(each, list) and len(each) == 3 and isinstance(each[0], str) and type(each[1]) is type(each[2]) is int
        for each in found
    ):
        raise UnreadableDocument(_NAME, "their widths are none")
    return tuple((str(each[0])[:64], int(each[1]), int(each[2])) for each in found)


def refusal_of_config(config: Any) -> str:
    """Why vLLM refuses an adapter with this adapter_config.json; empty where it takes it."""
    if not isinstance(config, dict):
        return f"{CONFIG} is no JSON object"
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        return f"it is of the kind {shown(kind)}, and the engine serves LoRA alone"
    missing = [name for name in ("r", "lora_alpha", "target_modules") if config.get(name) is None]
    if missing:
        return f"{CONFIG} has no {missing[0]}"
    if (problem := _bad_rank(config)) or (problem := _unsupported(config)):
        return problem
    return ""


def _bad_rank(config: Mapping[str, Any]) -> str:
    ranks = [config["r"], *_patterns(config)]
    if wrong := next((each for each in ranks if type(each) is not int or each <= 0), None):
        return f"its rank {shown(wrong)} is no positive integer"
    if not all(ranks):
        return "its rank is 0"
    if max(ranks) > LARGEST_RANK:
        return f"its rank is {max(ranks)}, and the engine takes {LARGEST_RANK} at most"
    return ""


def _unsupported(config: Mapping[str, Any]) -> str:
    saved = config.get("modules_to_save") or []
    init = config.get("init_lora_weights")
    flags = {
        "use_dora": "it is a DoRA (use_dora), which the engine does not serve",
        "lora_bias": "it has biases (lora_bias), which the engine does not serve",
        "alora_invocation_tokens": "it is an activated LoRA (alora_invocation_tokens), which the engine does not serve",
        "layer_replication": "it replicates layers (layer_replication), which the engine does not serve",
        "use_bdlora": "it is block-diagonal (use_bdlora), which the engine does not serve",
        "use_qalora": "it is a QALoRA (use_qalora), which the engine does not serve",
    }
    if found := next((why for name, why in flags.items() if config.get(name)), ""):
        return found
    if config.get("bias", "none") != "none":
        return f"it has biases (bias: {shown(config['bias'])}), which the engine does not serve"
    if whole := [each for each in saved if each not in _CLASSIFIERS] if isinstance(saved, list) else [saved]:
        return (
            f"it replaces whole modules (modules_to_save: {shown(whole[0])}), which the engine does not serve: merge "
            "it into the model"
        )
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        return (
            f"it was begun with init_lora_weights {shown(init)}, which changes the model's own weights: convert it to "
            "a plain LoRA with PEFT's path_initial_model_for_weight_conversion"
        )
    return ""


def _patterns(config: Mapping[str, Any]) -> list[Any]:
    patterns = config.get("rank_pattern")
    return list(patterns.values()) if isinstance(patterns, dict) else []


def adapter_facts(
    name: str, source: str, commit: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> AdapterFacts:
    """The facts of an adapter whose configuration is not refused."""
    base, widths, layers = config.get("base_model_name_or_path"), dict[str, list[int]](), 0
    for path, tensor in tensors.items():
        if (match := _LAYER.search(path)) is not None:
            layers = max(layers, int(match[1]) + 1)
        part = _PART.match(path)
        if part is None or len(tensor.shape) != 2 or not re.search(r"\.(self_attn|mlp)\.[a-z_]+$", part[1]):
            continue
        sides = widths.setdefault(part[1].rpartition(".")[2], [0, 0])
        is_input = part[2] == "A"
        sides[0 if is_input else 1] = tensor.shape[1 if is_input else 0]
    return AdapterFacts(
        name,
        source,
        commit,
        max([config["r"], *_patterns(config)]),
        sum(each.size for each in tensors.values()),
        base[:512] if isinstance(base, str) and base.isprintable() else "",
        layers,
        tuple((module, inputs, outputs) for module, (inputs, outputs) in sorted(widths.items())[:MOST_WIDTHS]),
    )
