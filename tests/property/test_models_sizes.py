"""Properties of every model, whatever its sizes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.errors import BadInput
from uellm.models import Architecture, read_architecture
from uellm.models.families.table import TABLE

NOISE = st.none() | st.integers() | st.lists(st.integers(), max_size=3)
MANY = settings(max_examples=100, deadline=None)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config that suits every family, because each reads only its own fields."""
    heads, width = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([8, 16, 32]))
    hidden, layers = heads * width, draw(st.integers(1, 9))
    experts = draw(st.integers(1, 12))
    kv = draw(st.sampled_from([n for n in (1, 2, 4, 8) if heads % n == 0]))
    ffn, expert_width = draw(st.integers(1, 200)), draw(st.integers(1, 60))
    return {
        "uellm_family": draw(st.sampled_from(sorted(TABLE))),
        "vocab_size": draw(st.integers(1, 600)),
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "intermediate_size_mlp": ffn,
        "ffn_dim": ffn,
        "ffn_hidden_size": ffn,
        "num_hidden_layers": layers,
        "num_layers": layers,
        "n_layer": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "num_experts": experts,
        "num_local_experts": experts,
        "n_routed_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": expert_width,
        "shared_expert_intermediate_size": expert_width,
        "n_shared_experts": draw(st.integers(0, 2)),
        "first_k_dense_replace": draw(st.integers(0, layers)),
        "decoder_sparse_step": draw(st.integers(1, 3)),
        "interleave_moe_layer_step": draw(st.integers(1, 3)),
        "q_lora_rank": draw(st.sampled_from([None, 24])),
        "kv_lora_rank": 40,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 24,
        "max_position_embeddings": 256,
        "sliding_window": draw(st.sampled_from([None, 64])),
        "attention_chunk_size": 64,
        "full_attention_interval": draw(st.integers(1, 3)),
        "tie_word_embeddings": draw(st.booleans()),
        "torch_dtype": draw(st.sampled_from(["float16", "bfloat16", "float32"])),
    }


@given(configs())
@MANY
def test_every_list_has_an_entry_a_layer_and_the_parts_make_the_whole(config: dict[str, Any]) -> None:
    model = read_architecture(config)
    for name in Architecture.__dataclass_fields__:
        if name.startswith("layer_") and (name != "layer_recent" or model.layer_recent):
            assert len(getattr(model, name)) == model.layers, name
    ends = model.embedding_bytes + model.final_norm_bytes + model.lm_head_bytes
    assert model.weight_bytes == sum(model.layer_weight_bytes) + ends
    # Some numbers are 32 bits wide for every dtype: biases of routers, state-space parameters.
    wider = model.weight_bytes - model.weight_dtype_bytes * model.parameters
    assert 0 <= wider <= (4 - model.weight_dtype_bytes) * model.parameters
    assert wider % max(1, 4 - model.weight_dtype_bytes) == 0
    assert 0 < model.active_parameters <= model.parameters
    assert all(flops > 0 for flops in model.layer_flops_per_token)


@given(configs(), st.integers(1, 500))
@MANY
def test_a_step_reads_more_with_more_tokens_and_never_more_than_there_is(config: dict[str, Any], tokens: int) -> None:
    model = read_architecture(config)
    for index in range(model.layers):
        few, more = model.layer_read_bytes(index, tokens), model.layer_read_bytes(index, tokens + 1)
        assert 0 < few <= more * (1 + 1e-12)
        assert more <= model.layer_weight_bytes[index] * (1 + 1e-12)


@given(configs(), st.sampled_from(["fp8", "experts_int8"]))
@MANY
def test_quantising_changes_the_matrices_alone(config: dict[str, Any], method: str) -> None:
    plain, small = read_architecture(config), read_architecture(config, quantization=method)
    assert small.parameters == plain.parameters
    assert small.layer_kv_bytes_per_token == plain.layer_kv_bytes_per_token
    assert small.layer_flops_per_token == plain.layer_flops_per_token
    assert small.embedding_bytes == plain.embedding_bytes
    assert small.lm_head_bytes == plain.lm_head_bytes


@given(
    configs(),
    st.sampled_from(["hidden_size", "vocab_size", "num_attention_heads", "num_hidden_layers"]),
    st.sampled_from([0, -1, "7", 2.5, True, [], {}, 1 << 60]),
)
@MANY
def test_no_absurd_value_is_taken_and_the_field_is_named(config: dict[str, Any], field: str, value: object) -> None:
    aliases = {"num_hidden_layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers")}
    broken = {**config, **dict.fromkeys(aliases.get(field, (field,)), value)}
    with pytest.raises(BadInput) as raised:
        read_architecture(broken)
    assert raised.value.field.removeprefix("config.") in aliases.get(field, (field,))
    assert len(str(raised.value).splitlines()) == 1


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1 << 50),
    st.floats(),
    st.text("ab.*(", max_size=4),
    st.lists(st.one_of(st.none(), st.integers(-1, 9), st.lists(st.none(), max_size=1)), max_size=10),
)
SECTION_FIELDS = (
    *("bits", "group_size", "weight_block_size", "ignore", "modules_to_not_convert", "dynamic", "config_groups"),
    *("quant_algo", "sym", "desc_act", "lm_head", "activation_scheme"),
)
METHODS = ("fp8", "awq", "gptq", "mxfp4", "fbgemm_fp8", "modelopt", "compressed-tensors")
OTHER_FIELDS = (
    *("head_dim", "layer_types", "sliding_window", "mlp_only_layers", "moe_layers", "no_rope_layers", "rope_scaling"),
    *("attention_bias", "torch_dtype", "architectures", "model_type", "text_config", "vision_config"),
)


@st.composite
def sections(draw: st.DrawFn) -> dict[str, Any]:
    group = st.dictionaries(st.sampled_from(["targets", "weights"]), JUNK | st.dictionaries(st.just("num_bits"), JUNK))
    fields = dict.fromkeys(draw(st.sets(st.sampled_from(SECTION_FIELDS), max_size=4)), JUNK)
    section = draw(st.fixed_dictionaries(fields))
    if draw(st.booleans()):
        section["config_groups"] = {"group_0": draw(group)}
    return {**section, "quant_method": draw(st.sampled_from(METHODS) | JUNK)}


@given(
    configs(),
    st.dictionaries(st.sampled_from(OTHER_FIELDS), JUNK | st.dictionaries(st.sampled_from(OTHER_FIELDS), JUNK)),
    st.none() | JUNK | sections(),
)
@MANY
def test_every_config_is_read_or_refused_in_one_line(
    config: dict[str, Any], junk: dict[str, Any], section: object
) -> None:
    try:
        model = read_architecture({**config, **junk, "quantization_config": section})
    except BadInput as error:
        refusal: BadInput | None = error
    else:
        refusal = None
        assert all(weights > 0 for weights in model.layer_weight_bytes)
    assert refusal is None or (refusal.field.startswith("config") and len(str(refusal).splitlines()) == 1)


@given(configs(), st.dictionaries(st.text("abc_", max_size=6), NOISE, max_size=4))
@MANY
def test_fields_that_no_family_reads_change_nothing(config: dict[str, Any], noise: dict[str, Any]) -> None:
    noise = {key: value for key, value in noise.items() if key not in config and not key.endswith("config")}
    assert read_architecture({**noise, **config}) == read_architecture(config)


@pytest.mark.parametrize("family", sorted(TABLE))
def test_every_family_is_found_by_its_type_and_by_its_name(family: str) -> None:
    for way in ({"model_type": family}, {"uellm_family": family}):
        with pytest.raises(BadInput, match=r"^config\..*is missing"):
            read_architecture(way)
