"""HRM-Text: two stacks of layers that run several times, each time with keys and values of their own.

Source: vllm/model_executor/models/hrm_text.py.
"""

from __future__ import annotations

from dataclasses import replace

from uellm.errors import BadInput
from uellm.models.families import attention, feed_forward, names
from uellm.models.families.traits import Traits
from uellm.models.fields import MOST_LAYERS, Config
from uellm.models.weights import Blueprint, Layer

TRAITS = Traits(norm_weight=False, output_gate=True)


def hrm_text(config: Config) -> Blueprint:
    """One layer here is one run of a layer of a stack. The first runs have the weights, those of both stacks.

    Checkpoints number the layers of each stack from 0; the engine does not cut this class into pipeline stages.
    """
    hidden, stack = config.size(*names.HIDDEN), config.layers("num_layers_per_stack")
    high, low = config.size("H_cycles"), config.size("L_cycles")
    steps = high * (low + 1)
    if steps * stack > MOST_LAYERS:
        raise BadInput(f"{config.prefix}.H_cycles", f"makes more than {MOST_LAYERS} layers of cycles and stacks")
    of, width = attention.heads_of(config, hidden), feed_forward.dense_width(config, TRAITS, hidden, 0)
    part = attention.grouped(config, TRAITS, hidden) + feed_forward.dense(config, TRAITS, hidden, width)
    both = Layer(2 * part.linears, 2 * part.other, part.kv_numbers, part.attention_flops)
    counted = replace(both, linears=(), other=0)  # the first run of the upper stack, behind `low` of the lower one
    again = replace(counted, shared=part.linears)
    runs = [both if step == 0 else counted if step == low else again for step in range(steps)]
    return Blueprint(
        layers=tuple(run for run in runs for _ in range(stack)),
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=width,
        vocab_size=config.size(*names.VOCABULARY),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=0,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        other_embedding=hidden,
        tensor_widths=(("intermediate_size", width),),
    )
