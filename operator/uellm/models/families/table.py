"""The traits of families, by model_type. Source: the modelling files of transformers and of vLLM."""

from __future__ import annotations

from uellm.models.families.traits import Traits

LLAMA = Traits()
PLAIN = Traits(qkv_bias=False, output_bias=False, mlp_bias=False)
QWEN = Traits(qkv_bias=True, output_bias=False, mlp_bias=False, slides=True)
QWEN3 = Traits(mlp_bias=False, query_key_norm="width", slides=True)
MIXTURE = Traits(qkv_bias=False, output_bias=False, mlp_bias=False, slides=True)
LATENT = Traits(mlp_bias=False, corrected=True)
OLMO2 = Traits(mlp_bias=False, query_key_norm="all", slides=True)
COHERE = Traits(norms=1, mlp_bias=False, tied=True, slides=True, window_pattern=4)
GRANITE = Traits()
GPT = Traits(layer_norm=True, qkv_bias=True, output_bias=True, mlp_bias=True, gated=False, layer_path="transformer.h")
GLM = Traits(output_bias=False, mlp_bias=False)
GLM_MOE = Traits(
    output_bias=False, mlp_bias=False, query_key_norm="width", query_key_norm_if="use_qk_norm", corrected=True
)
BERT = Traits(
    layer_norm=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    gated=False,
    final_norm=False,
    embedding_norm=True,
    positions=("max_position_embeddings",),
    other_embedding=("type_vocab_size",),
    layer_path="encoder.layer",
    encoder=True,
)
DELTA = Traits(mlp_bias=False, query_key_norm="width", output_gate=True, shared_gate=True, attention_interval=4)
GEMMA = Traits(norms=2, mlp_bias=False, tied=True)
GEMMA_SANDWICH = Traits(norms=4, mlp_bias=False, tied=True, slides=True, window_pattern=2)
MAMBA = Traits(norms=1, without_mlp=True, layer_path="backbone.layers")
HYBRID = Traits()

TABLE: dict[str, Traits] = {
    **dict.fromkeys(("llama", "yi", "internlm3", "solar", "granite"), LLAMA),
    **dict.fromkeys(("mistral", "ministral", "ministral3"), Traits(slides=True)),
    **dict.fromkeys(("smollm3", "arcee_base", "helium", "csm", "diffllama", "telechat3", "hyperclovax"), LLAMA),
    **dict.fromkeys(
        (
            "granitemoe",
            "granitemoeshared",
        ),
        GRANITE,
    ),
    "granitemoehybrid": Traits(dense_width=("shared_intermediate_size", "intermediate_size")),
    **dict.fromkeys(("granitemoeswa", "graniteswa"), Traits(window_pattern=4, full_first=True)),
    "cwm": Traits(window_pattern=4, full_first=True),
    "arcee": Traits(gated=False),
    "apertus": Traits(
        gated=False, query_key_norm="width", note="the two numbers of each xIELU activation are left out"
    ),
    "mixtral": MIXTURE,
    "qwen": Traits(
        qkv_bias=True,
        output_bias=False,
        mlp_bias=False,
        half_width=True,
        layer_path="transformer.h",
    ),
    "qwen2": QWEN,
    "mimo": Traits(qkv_bias=True, output_bias=False, mlp_bias=False),
    "qwen2_moe": Traits(qkv_bias="qkv_bias", output_bias=False, mlp_bias=False, shared_gate=True, slides=True),
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3,
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe"), DELTA),
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa", "glm4_moe_lite", "axk1"), LATENT),
    **dict.fromkeys(("mistral4", "pangu_ultra_moe", "sarvam_mla", "youtu", "hy_v3_mla"), LATENT),
    "glm5_next_text": Traits(mlp_bias=False, corrected=True, attention_interval=4),
    "mistral4": Traits(mlp_bias=False),
    "mistral_large_3": Traits(mlp_bias=False, corrected=False),
    "deepseek_v2": Traits(mlp_bias=False),
    "deepseek": PLAIN,
    "minicpm3": Traits(qkv_bias=False, output_bias=False, mlp_bias=False, latent_expanded=True),
    "kimi_linear": LATENT,
    "longcat_flash": LATENT,
    "dots1": Traits(mlp_bias=False, query_key_norm="width", corrected=True),
    "bailing_moe": Traits(qkv_bias="use_qkv_bias", output_bias="use_bias", mlp_bias="use_bias"),
    "bailing_moe_v2": Traits(
        qkv_bias="use_qkv_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        query_key_norm="width",
        query_key_norm_if="use_qk_norm",
        corrected="moe_router_enable_expert_bias",
    ),
    "minimax_m2": Traits(
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        query_key_norm="all",
        corrected="use_routing_bias",
    ),
    "minimax_m3": Traits(
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        query_key_norm="width",
        corrected="use_routing_bias",
        dense_width=("dense_intermediate_size", "intermediate_size"),
        note="the indexer of sparse attention is left out",
    ),
    "minimax": Traits(qkv_bias=False, output_bias=False, mlp_bias=False),
    "ernie4_5": Traits(qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias", tied=True),
    "ernie4_5_moe": Traits(qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias", tied=True, corrected=True),
    "glm": GLM,
    "glm4": Traits(norms=4, output_bias=False, mlp_bias=False),
    "glm4_moe": GLM_MOE,
    "glm_ocr_text": Traits(norms=4, output_bias=False, mlp_bias=False),
    "glm4v_text": Traits(norms=4, output_bias=False, mlp_bias=False),
    "glm4v_moe_text": GLM_MOE,
    "hunyuan_v1_dense": Traits(mlp_bias="mlp_bias", query_key_norm="width"),
    "hunyuan_v1_moe": Traits(mlp_bias="mlp_bias", query_key_norm="width", defaults={"num_shared_expert": 1}),
    "hy_v3": Traits(mlp_bias="mlp_bias", query_key_norm="width", corrected=True),
    "olmo": Traits(norm_weight=False, mlp_bias=False),
    "olmo2": OLMO2,
    "olmo3": Traits(mlp_bias=False, query_key_norm="all", window_pattern=4),
    "olmoe": OLMO2,
    "flex_olmo": OLMO2,
    "exaone": Traits(qkv_bias=False, output_bias=False, mlp_bias=False, layer_path="transformer.h"),
    "exaone4": Traits(qkv_bias=False, output_bias=False, mlp_bias=False, query_key_norm="width", window_pattern=4),
    "exaone_moe": Traits(
        qkv_bias=False, output_bias=False, mlp_bias=False, query_key_norm="width", corrected=True, window_pattern=4
    ),
    "seed_oss": Traits(output_bias="attention_out_bias"),
    "cohere": Traits(norms=1, mlp_bias=False, tied=True, query_key_norm="heads", query_key_norm_if="use_qk_norm"),
    "cohere2": COHERE,
    "cohere2_moe": COHERE,
    "command-r": COHERE,
    "phi3": Traits(qkv_bias=False, output_bias=False, mlp_bias=False, slides=True),
    "phi4_multimodal": Traits(qkv_bias=False, output_bias=False, mlp_bias=False, slides=True),
    "phi4mm": Traits(qkv_bias=False, output_bias=False, mlp_bias=False, slides=True),
    "phi": Traits(
        norms=1,
        layer_norm=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        head_bias=True,
        query_key_norm="width",
        query_key_norm_if="qk_layernorm",
    ),
    "phimoe": Traits(layer_norm=True, head_bias=True, slides=True),
    "starcoder2": Traits(
        layer_norm=True,
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        gated=False,
        tied=True,
        slides=True,
    ),
    "gpt_bigcode": Traits(
        layer_norm=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        tied=True,
        positions=("n_positions", "max_position_embeddings"),
        layer_path="transformer.h",
    ),
    "gptj": Traits(
        norms=1,
        layer_norm=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=True,
        gated=False,
        head_bias=True,
        layer_path="transformer.h",
    ),
    "gpt_neox": Traits(
        layer_norm=True,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias=True,
        gated=False,
        layer_path="gpt_neox.layers",
    ),
    "bloom": Traits(
        layer_norm=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        tied=True,
        embedding_norm=True,
        layer_path="transformer.h",
    ),
    "mpt": Traits(layer_norm=False, qkv_bias=False, output_bias=False, mlp_bias=False, gated=False, tied=True),
    "dbrx": Traits(qkv_bias=False, output_bias=False, mlp_bias=False, layer_path="transformer.blocks"),
    "stablelm": Traits(
        layer_norm=True,
        qkv_bias="use_qkv_bias",
        output_bias=False,
        mlp_bias=False,
        query_key_norm="heads",
        query_key_norm_if="qk_layernorm",
    ),
    "nemotron": Traits(layer_norm=True, gated=False),
    "jais2": Traits(layer_norm=True, gated=False),
    "persimmon": Traits(
        layer_norm=True, qkv_bias=True, output_bias=True, mlp_bias=True, gated=False, query_key_norm="width"
    ),
    "orion": Traits(layer_norm=True, qkv_bias=False, output_bias=False, mlp_bias=False),
    "internlm2": Traits(qkv_bias="bias", output_bias="bias", mlp_bias=False),
    "internlm": Traits(qkv_bias="bias", output_bias="bias", mlp_bias=False),
    **dict.fromkeys(("baichuan", "aquila", "telechat2", "telechat", "teleflm", "minicpm", "xverse", "step1"), PLAIN),
    "mamba": MAMBA,
    "mamba2": MAMBA,
    "falcon_mamba": MAMBA,
    "jamba": Traits(qkv_bias=False, output_bias=False, mlp_bias=False),
    "bamba": HYBRID,
    "falcon_h1": Traits(side_by_side=True),
    "nemotron_h": Traits(gated=False, corrected=True, layer_path="backbone.layers"),
    "nemotron_h_puzzle": Traits(gated=False, corrected=True, layer_path="backbone.layers"),
    "lfm2": Traits(
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        query_key_norm="width",
        embedding_norm=True,
        final_norm=False,
        tied=True,
    ),
    "lfm2_moe": Traits(
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        query_key_norm="width",
        embedding_norm=True,
        final_norm=False,
        tied=True,
        corrected="use_expert_bias",
    ),
    "olmo_hybrid": Traits(mlp_bias=False, query_key_norm="all", attention_interval=4),
    "gemma": GEMMA,
    "gemma2": GEMMA_SANDWICH,
    "gemma3_text": Traits(norms=4, mlp_bias=False, tied=True, window_pattern=6, query_key_norm="width"),
    "vaultgemma": Traits(norms=2, mlp_bias=False, tied=True, window_pattern=2),
    "cosmos3_edge_text": Traits(gated=False),
    "muse_glimmer_text": Traits(norms=4, mlp_bias=False, output_gate=True, slides=True, window_pattern=4),
    "afmoe": Traits(
        norms=4,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        query_key_norm="width",
        output_gate=True,
        corrected=True,
    ),
    "gpt_oss": Traits(
        qkv_bias=True, output_bias=True, sinks=True, expert_bias=True, router_bias=True, window_pattern=2
    ),
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "modernbert": Traits(
        layer_norm=False,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        embedding_norm=True,
        encoder=True,
        layer_path="layers",
    ),
    "nomic_bert": Traits(
        layer_norm=True,
        qkv_bias="qkv_proj_bias",
        output_bias="qkv_proj_bias",
        mlp_bias="mlp_fc1_bias",
        final_norm=False,
        embedding_norm=True,
        other_embedding=("type_vocab_size",),
        encoder=True,
        layer_path="encoder.layers",
    ),
    "new": Traits(
        layer_norm=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=False,
        final_norm=False,
        embedding_norm=True,
        other_embedding=("type_vocab_size",),
        encoder=True,
        layer_path="encoder.layer",
    ),
}
# Other names of the same decoder: text models inside wrappers, and names of before transformers had the family.
SAME = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_omni_moe_text": "qwen3_moe",
    "phi-msft": "phi",
    "gte": "new",
    "lfm2_vl": "lfm2",
    "voxtral_text": "llama",
    "mllama_text_model": "llama",
    "minimax_text_01": "minimax",
    "minimax_m1": "minimax",
    "deepseek_v3_2": "deepseek_v32",
    "ernie4_5_vl_moe_text": "ernie4_5_moe",
    "ernie4_5_vl_text": "ernie4_5_moe",
    "paddleocr_vl_text": "ernie4_5",
    "hunyuan": "hunyuan_v1_moe",
    "hunyuan_vl_text": "hunyuan_v1_dense",
    "muse_glimmer": "muse_glimmer_text",
}


def traits_of(model_type: str) -> Traits | None:
    """The traits of a family; None for one that is not known here."""
    return TABLE.get(SAME.get(model_type, model_type))
