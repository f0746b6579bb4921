"""The names that model families have for the same field, most usual first."""

from __future__ import annotations

HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = (
    *("num_key_value_heads", "n_head_kv", "num_kv_heads", "kv_n_heads", "multi_query_group_num"),
    *("num_attention_groups", "num_query_groups"),
)
HEAD_WIDTH = ("head_dim", "attention_head_dim", "kv_channels")
MLP_WIDTH = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
VOCABULARY = ("vocab_size", "padded_vocab_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"),
    *("num_experts_per_topk", "moe_router_topk", "top_k"),
)
EXPERT_WIDTH = (
    *("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "ffn_hidden_size"),
    *("expert_dim", "intermediate_size"),
)
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
SHARED_WIDTH = (
    *("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size"),
    *("share_expert_dim", "moe_shared_intermediate_size"),
)
DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
# Mamba: the names of Jamba, Bamba, Granite and Falcon-H1; of Mamba, Mamba2 and Nemotron-H; of Zamba2.
STATE = ("mamba_d_state", "ssm_state_size", "state_size")
KERNEL = ("mamba_d_conv", "conv_kernel")
EXPAND = ("mamba_expand", "expand")
STATE_HEADS = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
STATE_HEAD_WIDTH = ("mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")
STATE_GROUPS = ("mamba_n_groups", "n_groups", "mamba_ngroups")
TIME_RANK = ("mamba_dt_rank", "time_step_rank")
CONVOLUTION_BIAS = ("mamba_conv_bias", "use_conv_bias")
PROJECTION_BIAS = ("mamba_proj_bias", "use_bias", "add_bias_linear")
