"""Every figure of the planner that is not measured, with its unit in its name and its source beside it.

They are defaults; `uellm calibrate` and measurements on the node replace them. Three kinds of figures are elsewhere:
limits of an algorithm beside it (placement/, calibration/fitting.py), placement policies with their weights
(uellm/placement_policies.py), and what vLLM supports on which GPU (nodes/capability.py).
"""

from __future__ import annotations

import math

# vLLM's default of --gpu-memory-utilization (vllm/config/cache.py); it refuses to start where less is free.
GPU_MEMORY_UTILIZATION = "0.92"

# Driver context and allocations of libraries outside of torch, measured on H100s with tensor size 1 and 2.
CONTEXT_BYTES = 136 << 20  # 0.13 GiB
TENSOR_PARALLEL_CONTEXT_BYTES = 430 << 20  # 0.42 GiB more: NCCL's buffers and the custom all-reduce

# CUDA graphs. Measured between -0.9 and +1.0 GiB on H100s, so this is a cautious average: 0.5 GiB for 32 layers.
CUDA_GRAPH_BYTES_PER_LAYER = 16 << 20

# Peak of activations, in numbers of the model's dtype per token of a step. A layer's peak is in its MLP: gate and up
# projections side by side, and their product (3 x intermediate); beside them the residual, the normed input, q, k, v
# and the attention's output (6 x hidden).
ACTIVATIONS_PER_HIDDEN = 6
ACTIVATIONS_PER_INTERMEDIATE = 3

# Sampling on the last stage, bytes per sequence and vocabulary entry: logits in 16 bits, their copy and the
# probabilities in float32, the sorted values in float32 and their indices in int64 (vllm/v1/sample).
SAMPLER_BYTES_PER_LOGIT = 22

# vLLM's defaults for --max-num-batched-tokens and --max-num-seqs by device memory (vllm/engine/arg_utils.py).
GIB = 1 << 30
ENGINE_DEFAULTS = ((160 * GIB, 16384, 1024), (70 * GIB, 8192, 1024), (0, 2048, 256))

# vLLM allocates KV cache in blocks of 16 tokens on GPUs and 128 on CPUs, and keeps one block for itself.
BLOCK_TOKENS = 128

# The CPU engine really allocates its KV cache, in the memory of the machine that simulates the GPUs.
CPU_KV_CACHE_BYTES = 256 << 20

# Chunk sizes to choose from, in tokens per step. A step that takes at most this share of the TPOT target leaves room
# for what a mean hides: longer contexts, and requests that wait a step (the guards of llm-d and Sarathi keep a similar
# margin).
CHUNKS = (64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
CHUNK_TPOT_SHARE = 0.85
# Without a TPOT or E2E target: vLLM's default for large GPUs. More would only cost memory.
CHUNK_WITHOUT_PACE = 8192
# The step around which the step-time model is linearised while layers and KV cache are unknown: a chunk of some hundred
# tokens beside some dozen sequences. An engine that can run fewer sequences than the last figure is not worth a GPU.
TYPICAL_CHUNK = 512
TYPICAL_SEQUENCES = 64
LEAST_SEQUENCES = 8

# The share of requests that meet a predicted TTFT; status reports the measured p99 beside it. The second figure limits
# the engine's utilisation by prompts, because at 1 a queue grows without limit (and at .95 it holds 19 prompts).
TTFT_QUANTILE = 0.99
MOST_UTILISATION = 0.95

# Assumptions about a workload that is not described. The plan states each one that it uses.
ASSUMED_PROMPT_TOKENS = 512
ASSUMED_OUTPUT_TOKENS = 256
ASSUMED_TPOT_S = 0.05
ASSUMED_TTFT_S = 1.0

# Roofline: the share of the measured rates of plain matrix products and copies that a transformer's layers reach.
COMPUTE_EFFICIENCY = 0.7
MEMORY_EFFICIENCY = 0.8
# Time of a step that does not depend on the model: scheduling, sampling, launching (vLLM V1, one sequence, small
# models).
STEP_OVERHEAD_S = 0.002
# Time that a sequence adds to a step besides its bytes: its row in scheduler, sampler and output (reference engine: 15
# us).
PER_SEQUENCE_S = 15e-6

# A hop over a link that was not measured: a small copy over PCIe through host memory.
UNMEASURED_LATENCY_S = 2e-5
UNMEASURED_BYTES_PER_S = 1e10

# Speeds this close count as equal: measurements of equal devices differ by some percent, and noise must not move
# layers.
SPEED_TOLERANCE = 0.05

# Predictions this close to a target meet it, so that float rounding decides nothing.
TARGET_TOLERANCE = 1e-9
# A gap to the lower bound of up to this is rounding in sums of floats.
GAP_TOLERANCE = 1e-9
# Bisection over rates and numbers of sequences stops at this relative difference.
BISECTION_TOLERANCE = 1e-5

# The solver minimises a measure of the pipeline, so on a faster node its split may serve a mean request later by up to
# this much.
IDEAL_SLACK = 0.95
# A replica that carries such a small part of the workload has next to no load: what it cannot do, no replica can.
MOST_REPLICAS = 1 << 20
# Up to this many GPUs of one kind in a node, every choice of tensor-parallel groups is considered (2**12 sets).
MOST_EXACT_GROUPING = 12

# If targets cannot be met, the plan is made for this multiple of the best possible. The best possible holds only for a
# lone request, so there is at least 10 % headroom.
LEEWAYS = (1.1, 1.5, 4.0, math.inf)
# Placements whose worst target is within this factor of the best count as equal, and the fewest GPUs decide.
NEARLY_BEST = 1.05
# Faster GPUs are proposed up to this factor; the factor is determined to this step.
MOST_FASTER = 16.0
FASTER_STEP = 0.05
# If nothing fits: smaller model lengths and more GPUs in a node than these are not proposed.
LEAST_LENGTH = 256
MOST_GPUS_OF_A_NODE = 16

# Alternatives that a plan lists.
MOST_ALTERNATIVES = 8
# Nodes that a sentence names before it only counts the others.
MOST_NODES_NAMED = 3
# The most devices and links in plan.json: each takes some hundred bytes, and a ConfigMap holds 1 MiB.
MOST_FACTS = 4000

# Nodes in devices.json. With eight GPUs each that is about 300 KiB of the 1 MiB that a ConfigMap may have.
MOST_NODES = 64

# The share by which two GPUs of one product may differ in memory and still be of one class: drivers reserve some of it.
SAME_CLASS = 0.02

# The largest tensor parallelism that a refusal suggests.
MOST_SUGGESTED = 16

# Bytes of a number in a KV cache of bfloat16 or float16.
WIDE_BYTES = 2
