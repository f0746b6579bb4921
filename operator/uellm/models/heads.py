"""What stands behind the last layer: an LM head, a classifier, or nothing. The class's name tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.models.fields import Config

CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel", "RewardModel", "ForRanking")
# Classes that end in Model and yet write text.
WRITERS = ("LMHeadModel", "ChatGLMModel", "ChatModel", "OmniModel", "UltravoxModel", "AudioModel", "AquilaModel")
GUESSERS = ("BertForMaskedLM", "BertSpladeSparseEmbeddingModel")
"""Embedders that weigh the words of the vocabulary; the engine drops this head of every other masked model."""
DEFAULT_CLASSES = 2  # transformers' own


@dataclass(frozen=True, slots=True)
class ModelHead:
    """`writes`: an LM head; `classes`: the rows of a classifier's head."""

    writes: bool
    classes: int = 0


def head_of(name: str, config: Mapping[str, Any]) -> ModelHead:
    """The head of a class. Raises BadInput for a bad number of labels."""
    if name.endswith(CLASSIFIERS):
        labels = config.get("id2label")
        given = len(labels) if isinstance(labels, Mapping) and labels else DEFAULT_CLASSES
        return ModelHead(False, Config(config).size("num_labels", default=given))
    if name == "BgeM3EmbeddingModel":
        return ModelHead(False, 1)  # a weight for each word, behind a dense layer for vectors of words
    if name in GUESSERS:
        return ModelHead(False, Config(config).size("vocab_size"))
    if name.endswith("ForMaskedLM") or (name.endswith(("Model", "EmbeddingModel")) and not name.endswith(WRITERS)):
        return ModelHead(False)
    return ModelHead(True)
