"""Every number of the planner that is not measured: its unit is in its name, its source beside it.

They are defaults: `uellm calibrate` and measurements on the node replace them, and nothing else in the planner holds a
figure of its own.
"""

from __future__ import annotations

# vLLM's default of --gpu-memory-utilization (vllm/config/cache.py); it refuses to start where less is free.
GPU_MEMORY_UTILIZATION = "0.92"

# Driver context and what libraries allocate outside of torch, measured on H100s with tensor size 1 and 2.
CONTEXT_BYTES = 136 << 20  # 0.13 GiB
TENSOR_PARALLEL_CONTEXT_BYTES = 430 << 20  # 0.42 GiB more: NCCL's buffers and the custom all-reduce

# CUDA graphs. Measured between -0.9 and +1.0 GiB on H100s, so this is a cautious middle: 0.5 GiB for 32 layers.
CUDA_GRAPH_BYTES_PER_LAYER = 16 << 20

# Peak of activations, in numbers of the model's dtype per token of a step. The widest moment of a layer is its MLP:
# gate and up projections side by side, and their product (3 x intermediate); around it the residual, the normed input,
# q, k, v and the attention's output (6 x hidden).
ACTIVATIONS_PER_HIDDEN = 6
ACTIVATIONS_PER_INTERMEDIATE = 3

# Sampling on the last stage, bytes per sequence and vocabulary entry: logits in 16 bits, their copy and the
# probabilities in float32, the sorted values in float32 and their indices in int64 (vllm/v1/sample).
SAMPLER_BYTES_PER_LOGIT = 22

# vLLM's defaults for --max-num-batched-tokens and --max-num-seqs by device memory (vllm/engine/arg_utils.py).
GIB = 1 << 30
ENGINE_DEFAULTS = ((160 * GIB, 16384, 1024), (70 * GIB, 8192, 1024), (0, 2048, 256))

# vLLM hands out KV cache in blocks of 16 tokens on GPUs and 128 on CPUs, and keeps one block for itself.
BLOCK_TOKENS = 128

# The CPU engine really allocates its KV cache on the machine that plays the GPUs.
CPU_KV_CACHE_BYTES = 256 << 20

# Chunks to choose from, in tokens a step. A step within this share of the TPOT target leaves room for what a mean does
# not tell: longer contexts, and requests that wait a step (llm-d's and Sarathi's guards keep a like margin).
CHUNKS = (64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
CHUNK_TPOT_SHARE = 0.85
# Where nobody waits for the next token: vLLM's default for large GPUs; more only costs memory.
CHUNK_WITHOUT_PACE = 8192
# The step around which the step-time model is taken while neither layers nor KV cache are known: a chunk of some
# hundred tokens beside some dozen sequences. Fewer sequences than the last are no engine worth a GPU.
TYPICAL_CHUNK = 512
TYPICAL_SEQUENCES = 64
LEAST_SEQUENCES = 8

# The share of requests that keep a predicted TTFT: status tells the measured p99 beside it. Prompts may keep the engine
# busy so far, for a queue at 1 never ends (and at .95 it holds 19 prompts).
TTFT_QUANTILE = 0.99
MOST_UTILISATION = 0.95

# What is assumed of a workload that nobody describes; each use becomes a sentence of the plan.
ASSUMED_PROMPT_TOKENS = 512
ASSUMED_OUTPUT_TOKENS = 256
ASSUMED_TPOT_S = 0.05
ASSUMED_TTFT_S = 1.0

# Roofline: the share of the measured rates of plain matrix products and copies that a transformer's layers reach.
COMPUTE_EFFICIENCY = 0.7
MEMORY_EFFICIENCY = 0.8
# Time of a step that no model size explains: scheduling, sampling, launching (vLLM V1, one sequence, small models).
STEP_OVERHEAD_S = 0.002
# What a sequence adds to a step besides its bytes: its row in scheduler, sampler and output (reference engine: 15 us).
PER_SEQUENCE_S = 15e-6

# A hop between devices whose link nobody measured: a small copy over PCIe through host memory.
UNMEASURED_LATENCY_S = 2e-5
UNMEASURED_BYTES_PER_S = 1e10

# Speeds this close count as equal: measurements of equal devices differ by some percent, and noise must not move
# layers.
SPEED_TOLERANCE = 0.05

# Predictions this close to a target meet it: the last digits of a float decide nothing.
TARGET_TOLERANCE = 1e-9
