"""Every figure of the planner that is not measured, with its unit in its name and its source beside it.

They are defaults; `uellm calibrate` and measurements on the node replace them. Other figures stay elsewhere: limits of
an algorithm beside it (placement/, calibration/fitting.py), how much is remembered (memo.py, search/figures.py),
placement policies with their weights (uellm/placement_policies.py), rates by number format (kernels.py) and by GPU
product (hardware/products.py), and what vLLM supports on which GPU and does by default (nodes/capability.py, vllm/).
"""

from __future__ import annotations

import math

# vLLM's default of --gpu-memory-utilization (vllm/config/cache.py); it refuses to start where less is free.
GPU_MEMORY_UTILIZATION = "0.92"

# Driver context and allocations of libraries outside of torch, measured on H100s with tensor size 1 and 2.
CONTEXT_BYTES = 136 << 20  # 0.13 GiB
TENSOR_PARALLEL_CONTEXT_BYTES = 430 << 20  # 0.42 GiB more, over NVLink: the buffers of the custom all-reduce

# CUDA graphs: start-up logs of Qwen3-14B on L4 and L40S leave 0.3 GiB for those of 40 layers.
CUDA_GRAPH_BYTES_PER_LAYER = 8 << 20

# Peak of activations, in numbers of the model's dtype per token of a step. A layer's peak is in its MLP: gate and up
# projections side by side, and their product (3 x intermediate); beside them the residual, the normed input, q, k, v
# and the attention's output (6 x hidden).
ACTIVATIONS_PER_HIDDEN = 6
ACTIVATIONS_PER_INTERMEDIATE = 3

# The same of an image encoder's block for each patch, which has q, k, v, their rotated copies and the output in turn
# with the MLP's. Tensor parallelism divides these, and neither the residual nor the normed input.
ENCODER_PER_HIDDEN = 2
ENCODER_HEADS_PER_HIDDEN = 6

# Kernels for MXFP4 experts fill whole tiles: the hidden size is rounded up to the first of these, and an expert's width
# on a GPU to the second. Start-up logs of gpt-oss show 5 to 6 % more weights than the checkpoint, 12 % with tensor 4.
MXFP4_HIDDEN_TILE = 256
MXFP4_WIDTH_TILE = 64

# So are those of experts that the engine itself makes FP8 by blocks (Fp8PerBlockOnlineMoEMethod of vLLM).
FP8_ONLINE_TILE = 128

# vLLM allocates KV cache in blocks of 16 tokens on GPUs and 128 on CPUs, and keeps one block for itself.
BLOCK_TOKENS = 128

# The CPU engine really allocates its KV cache, in the memory of the machine that simulates the GPUs.
CPU_KV_CACHE_BYTES = 256 << 20

# Defaults of a described load (cost/replay.py, cost/open_loop.py): prompts per client, as in benchmarks of engines; at
# a rate, enough requests for a queue to show. Lengths of answers are evenly spread by up to this share around their
# mean: 0.8 to 1 of a limit.
PROMPTS_PER_CLIENT = 10
REQUESTS_AT_A_RATE = 500
OUTPUT_SPREAD = 1 / 9
# Bounds of what is described (prediction/point.py): of counts and tokens, of rates and bytes, and of the steps that are
# replayed, which take up to a minute or two.
MOST_COUNTED = 10**9
MOST_RATE = 1e24
MOST_REPLAYED_STEPS = 10**7

# Chunks to choose from, in tokens a step. A step within this share of the TPOT target leaves room for what a mean
# hides: longer contexts, and requests that wait a step (llm-d's and Sarathi's guards keep a similar margin).
CHUNKS = (64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
CHUNK_TPOT_SHARE = 0.85
# Without a TPOT or E2E target: vLLM's default for large GPUs. More would only cost memory.
CHUNK_WITHOUT_PACE = 8192
# The step around which the step-time model is linearised while layers and KV cache are unknown: a chunk of some hundred
# tokens beside some dozen sequences. An engine that can run fewer sequences than the last figure is not worth a GPU.
TYPICAL_CHUNK = 512
TYPICAL_SEQUENCES = 64
LEAST_SEQUENCES = 8
# Places for sequences that a plan has in any case, and for each request in flight on average: bursts need more.
ENOUGH_SEQUENCES = 256
PLACES_PER_REQUEST = 4
# How many times as large a chunk is tried where the one chosen makes a plan miss its targets.
LARGER_CHUNKS = (2, 4, 16)

# The share of requests that meet a predicted TTFT; status reports the measured p99 beside it. The second figure limits
# the engine's utilisation by prompts, because at 1 a queue grows without limit (and at .95 it holds 19 prompts).
TTFT_QUANTILE = 0.99
MOST_UTILISATION = 0.95
# Rounds of the fixed point for the tokens of an embedder's step; each is nearer by the engine's utilisation.
POOLING_ROUNDS = 16

# Placements that a search may try, some seconds of work. One for hundreds of nodes that all differ takes some hundreds.
MOST_PLACEMENTS = 4000

# Share of a TTFT or TPOT target that a load may take by predictions that nobody calibrated on this engine: half of the
# predicted TPOTs of published runs are off by more than 8 %.
UNCALIBRATED_SHARE = 0.95
# A pipeline over GPUs with NVLink must be predicted faster by this factor than tensor parallelism on as many GPUs: its
# latency depends on how evenly its stages are filled, which predictions do not know.
PIPELINE_CAUTION = 1.2

# Assumptions about a workload that is not described. The plan states each one that it uses.
ASSUMED_PROMPT_TOKENS = 512
ASSUMED_OUTPUT_TOKENS = 256
ASSUMED_TPOT_S = 0.05
ASSUMED_TTFT_S = 1.0

# What follows is fitted to published measurements of vLLM on GPUs (bench/published.py fits and prints it; the rates by
# number format are in kernels.py). Shares of the measured rates of plain matrix products and copies:
COMPUTE_EFFICIENCY = 0.808
ATTENTION_EFFICIENCY = 0.514  # attention of a prompt's tokens
MEMORY_EFFICIENCY = 0.946
# Time of a step besides its FLOPs and bytes: per step, per layer, per sequence (its row in scheduler, sampler and
# output), and per layer of a step with tokens of a prompt, which CUDA graphs do not cover.
STEP_OVERHEAD_S = 0.377e-3
LAYER_S = 37.6e-6
EXPERT_LAYER_S = 9.05e-6  # with routed experts, besides
EAGER_LAYER_S = 300e-6  # with --enforce-eager, besides
PER_SEQUENCE_S = 7.96e-6
SERIAL_PER_SEQUENCE_S = 98.6e-6  # in versions that do not overlap this with the GPU's work (vllm/version.py)
PROMPT_LAYER_S = 300e-6
SERIAL_PROMPT_LAYER_S = 957e-6
# Time before a request's prompt is in the engine, and what each token of it adds: HTTP, template, tokeniser.
REQUEST_S = 10.4e-3
PROMPT_TOKEN_S = 11.3e-6

# A hop over a link that was not measured: a small copy over PCIe through host memory.
UNMEASURED_LATENCY_S = 2e-5
UNMEASURED_BYTES_PER_S = 1e10

# Between two nodes, where nobody measures it: NCCL over TCP sockets, which every cluster has. A message passes the
# network stacks of two kernels, at 10 to 30 microseconds each, and sockets and copies through host memory leave about
# half of 100 Gbit/s. RDMA is ten times as fast in both. A plan loses little by the caution: hops between stages cross
# the network, and no all-reduce.
NETWORK_LATENCY_S = 5e-5
NETWORK_BYTES_PER_S = 5e9
# A replica over several nodes has as many GPUs as the API allows. Longer pipelines than the last figure are evaluated
# only where overrides ask for them: each stage adds its constants and a hop to every token.
MOST_GPUS_OF_A_REPLICA = 64
MOST_NODES_OF_A_REPLICA = 8
MOST_STAGES_OVER_NODES = 16

# Speeds this close count as equal: measurements of equal devices differ by some percent, and noise must not move
# layers.
SPEED_TOLERANCE = 0.05
# Nodes with GPUs of the same kinds may form this many classes by their measured figures alone: each costs a search a
# tenth of a second. Where they form more, figures are brought to levels (nodes/levels.py), in the first of these steps
# that suffices. Latencies have wider ones: they are noisier, and a tenth of them is a hundredth of a token's time.
MOST_NOISY_CLASSES = 8
LEVEL_STEPS = (0.03, 0.06, 0.12, 0.24)
LATENCY_STEPS = 4
# Step times that were measured on a GPU mean nothing for one whose rates differ by more: it was measured anew, or is
# slower than its twins. Twice the noise of a measurement, and the rounding of what is written down.
CORRECTED_RATE_TOLERANCE = 0.15

# Predictions this close to a target meet it, so that float rounding decides nothing.
TARGET_TOLERANCE = 1e-9
# A gap to the lower bound of up to this is rounding in sums of floats.
GAP_TOLERANCE = 1e-9
# Bisection over rates and numbers of sequences stops at this relative difference.
BISECTION_TOLERANCE = 1e-5

# The solver minimises a measure of the pipeline, so on a faster node its split may serve a mean request later by up to
# this much.
IDEAL_SLACK = 0.95
# A replica with this small a share of the workload has next to no load: what it cannot do, no replica can.
MOST_REPLICAS = 1 << 20
# Orders in which the parts of a plan are tried on the nodes of a group, where they differ: all of them for six nodes.
MOST_PART_ORDERS = 720
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

# Nodes in devices.json: those of the replicas, then the best others. With eight GPUs each that is about 40 KiB, and
# every service has such a file. A replica on yet another node has its facts written when it is bound.
MOST_NODES = 8

# The share by which two GPUs of one product may differ in memory and still be of one class: drivers reserve some of it.
SAME_CLASS = 0.02

# What an engine takes of its node besides GPUs. API server and engine core are two Python processes with torch: 2 GB
# were resident in a vLLM 0.32 with a tiny model.
HOST_FRONT_BYTES = 2 << 30
# A CUDA process with torch and NCCL.
HOST_RANK_BYTES = 2 << 30
# The pieces in which weights are loaded: at most one file of a sharded checkpoint (Hugging Face writes 5 GB).
HOST_PIECE_BYTES = 5 * 10**9
# NCCL and vLLM's message queues in /dev/shm.
HOST_SHARED_BYTES = 1 << 29
HOST_CPU_RANK_BYTES = 1 << 29
HOST_FRONT_MILLICORES = 500
HOST_RANK_MILLICORES = 500
HOST_CPU_MILLICORES = 100

# What vLLM takes for --max-lora-rank (vllm/config/lora.py).
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
SUFFIX_TOKENS = 24
"""That suffix decoding drafts at most, where nothing else is said (suffix_decoding_max_tree_depth)."""
MOST_DRAFTED_TOKENS = 1000
"""For a sequence in a step: beyond any use."""
# A token in FP8 in the cache of sparse latent attention (vllm/v1/attention/backends/mla/flashmla_sparse.py).
SPARSE_LATENT_NUMBERS, SPARSE_LATENT_FP8_BYTES = 576, 656
DRAFT_LOGIT_BYTES = 4
"""Of a drafted token's probabilities, a number (vllm/v1/worker/gpu/spec_decode/speculator.py)."""
# Slots are memory of the GPUs whether they are used or not, and few adapters are in use at a time.
FEWEST_ADAPTER_SLOTS, MOST_ADAPTER_SLOTS = 4, 8
# Adapters that are kept in host memory, for each slot.
HOST_ADAPTERS_PER_SLOT = 4

# Groups of GPUs that a ResourceClaim prefers by their uuids. Kubernetes allows 8 alternatives to a request, and the
# last one is any GPUs of the kind.
MOST_PREFERRED_GROUPS = 7
# Kubernetes bounds a CEL expression of a claim at 10 KiB; a uuid takes 44 characters.
UUIDS_PER_SELECTOR = 100

# With allocation Auto, pods claim their GPUs if the plan is better by this share. Measurements of the same GPU differ
# by about half as much.
LEAST_GAIN_OF_CLAIMS = 0.1
