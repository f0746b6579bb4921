"""What a model is for, by its class and the files beside it, and what its size then is."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.checkpoints import llama_tensors
from helpers.models import SMALLEST_LLAMA
from helpers.pooling_models import bert, modernbert, qwen2, qwen3, voxtral, whisper, xlm_roberta
from uellm.models import read_architecture, tasks_of
from uellm.models.tasks import SENTENCE_TRANSFORMERS

OMNI = {"architectures": ["Qwen3OmniMoeForConditionalGeneration"], "thinker_config": {"vision_config": {}}}
PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "bge-large-en-v1.5": (bert(), "Embed"),
    "bge-m3": (xlm_roberta(), "Embed"),
    "gte-modernbert-base": (modernbert(), "Embed"),
    "jina-embeddings-v3": (xlm_roberta("XLMRobertaModel"), "Embed"),
    "Qwen3-Embedding-0.6B": (qwen3(**{SENTENCE_TRANSFORMERS: True}), "Embed"),
    "gte-Qwen2-7B-instruct": (qwen2(**{SENTENCE_TRANSFORMERS: True}), "Embed"),
    "e5-mistral-7b-instruct": ({"architectures": ["MistralModel"]}, "Embed"),
    "bge-reranker-v2-m3": (xlm_roberta("XLMRobertaForSequenceClassification"), "Score"),
    "gte-reranker-modernbert-base": (modernbert("ModernBertForSequenceClassification"), "Score"),
    "Qwen3-Reranker-0.6B-seq-cls": (qwen3("Qwen3ForSequenceClassification"), "Score"),
    "jina-reranker-v3": ({"architectures": ["JinaForRanking"]}, "Score"),
    "Qwen2.5-Math-RM-72B": ({"architectures": ["Qwen2ForRewardModel"]}, "Score"),
    "Skywork-Reward-V2": ({"architectures": ["LlamaForSequenceClassification"]}, "Score"),
    "colbertv2.0": ({"architectures": ["HF_ColBERT"]}, "Score"),
    "whisper-large-v3-turbo": (whisper(), "Transcribe"),
    "Voxtral-Mini-3B-2507": (voxtral(), "Transcribe"),
    "Qwen3-Omni": (OMNI, "Generate"),
    "Qwen2.5-VL-7B": ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "Generate"),
    "Qwen3-0.6B": (qwen3(), "Generate"),
    "a class of nobody": ({"architectures": ["Stranger"]}, "Generate"),
    "no class": ({}, "Generate"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_task_of_a_published_model_is_inferred(name):
    config, task = PUBLISHED[name]
    assert tasks_of(config).inferred == task


@pytest.mark.parametrize(
    ("config", "possible"),
    [
        (bert(), {"Embed"}),
        (xlm_roberta("XLMRobertaForSequenceClassification"), {"Score"}),
        (qwen3(), {"Generate", "Embed"}),
        (whisper(), {"Transcribe"}),
        (voxtral(), {"Transcribe", "Generate", "Embed"}),
    ],
)
def test_a_model_can_do_what_its_class_can(config, possible):
    assert set(tasks_of(config).possible) == possible


@pytest.mark.parametrize("config", [bert(), xlm_roberta(), modernbert()])
def test_an_encoder_keeps_no_kv_cache_and_has_no_lm_head(config):
    model = read_architecture(config)
    assert (model.kv_bytes_per_token, model.lm_head_bytes, model.writes) == (0, 0, False)


# Parameters as counted on the hub; BERT's pooler, which the engine does not load, is among them.
@pytest.mark.parametrize(
    ("config", "published"), [(bert(), 335_141_888), (xlm_roberta(), 567_754_752), (qwen3(), 595_776_512)]
)
def test_sizes_are_those_that_are_published(config, published):
    assert read_architecture(config, task="Embed").parameters == pytest.approx(published, rel=5e-3)


def test_a_decoder_embedder_keeps_its_kv_cache_and_loses_its_lm_head():
    embedder, writer = read_architecture(qwen2(), task="Embed"), read_architecture(qwen2())
    assert embedder.kv_bytes_per_token == writer.kv_bytes_per_token > 0
    assert writer.weight_bytes - embedder.weight_bytes == writer.lm_head_bytes == 151646 * 3584 * 2
    assert embedder.head_flops_per_token == 0


def test_a_decoder_that_attends_in_both_directions_keeps_none_when_it_embeds():
    embedder = read_architecture(qwen2(is_causal=False), task="Embed")
    causal = read_architecture(qwen2(), task="Embed")
    assert embedder.kv_bytes_per_token == 0
    assert embedder.layer_attention_flops_per_token[0] == 2 * causal.layer_attention_flops_per_token[0]


@pytest.mark.parametrize(
    ("fields", "keeps"),
    [
        ({"architectures": ["LlamaBidirectionalModel"]}, False),
        ({"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True}, False),
        ({"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": False}, True),
        # The engine asks Gemma's class alone for that field.
        ({"architectures": ["Qwen2Model"], "use_bidirectional_attention": True}, True),
        ({"architectures": ["JinaEmbeddingsV5Model"], "is_decoder": False}, False),
        ({"architectures": ["DeepseekV3BidirectionalModel"]}, True),
    ],
)
def test_whether_an_embedder_keeps_a_kv_cache_is_decided_as_the_engine_does(fields, keeps):
    assert (read_architecture({**qwen2(), **fields}, task="Embed").kv_bytes_per_token > 0) == keeps


def test_a_checkpoints_lm_head_is_not_counted_for_an_embedder():
    config = {**SMALLEST_LLAMA, "tie_word_embeddings": False}
    tensors = llama_tensors(config, "F16")
    writer, embedder = (read_architecture(config, tensors=tensors, task=task) for task in ("Generate", "Embed"))
    assert embedder.source == "safetensors"
    assert writer.weight_bytes - embedder.weight_bytes == writer.lm_head_bytes > 0


def test_a_rerankers_head_is_as_wide_as_its_labels():
    one, three = (read_architecture(qwen3("Qwen3ForSequenceClassification", num_labels=labels)) for labels in (1, 3))
    assert three.lm_head_bytes - one.lm_head_bytes == 2 * 1024 * 2
