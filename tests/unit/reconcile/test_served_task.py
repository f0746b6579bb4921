"""The task of a service: inferred or set, refused in one line, and told to the engine."""

from __future__ import annotations

import json

import pytest

from helpers.pooling_models import bert, qwen3, voxtral, whisper, xlm_roberta
from uellm.api import parse_service
from uellm.errors import PlanError
from uellm.hub import ModelFacts
from uellm.models.tasks import SENTENCE_TRANSFORMERS
from uellm.reconcile.planning.request import architecture_of, plan_request

RERANKER = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "num_labels": 1,
}


def service(make, config, *, classes=(), args=(), **model):
    spec = {"model": {"uri": "hf://org/model", "config": config, **model}, "engine": {"args": list(args)}}
    return parse_service(make.service(**spec, slo={"classes": list(classes)} if classes else {}))


def requested(found, facts=None):
    return plan_request(found, architecture_of(found, facts), (), facts=facts)


@pytest.mark.parametrize(
    ("config", "task", "args"),
    [
        (bert(), "Embed", (("--runner", "pooling"),)),
        (xlm_roberta("XLMRobertaForSequenceClassification"), "Score", (("--runner", "pooling"),)),
        (whisper(), "Transcribe", ()),
        (qwen3(), "Generate", ()),
    ],
)
def test_the_task_is_inferred_and_the_engine_is_told(make, config, task, args):
    request = requested(service(make, config))
    assert (request.task, request.engine.task_args) == (task, args)


def test_a_task_that_is_not_text_is_explained(make):
    request = requested(service(make, bert()))
    assert "task Embed, because BertModel is in the group embedding of vLLM 0.32" in request.notes
    note = requested(service(make, voxtral())).notes[0]
    assert note.startswith("task Transcribe, because VoxtralForConditionalGeneration is a class of vLLM 0.32")
    assert note.endswith("; set spec.model.task for another one")
    assert not any(note.startswith("task") for note in requested(service(make, qwen3())).notes)


@pytest.mark.parametrize(
    ("uri", "noted"),
    [("hf://Qwen/Qwen3-Reranker-0.6B", True), ("hf://Qwen/Qwen3-0.6B", False), ("hf://org/abge", False)],
)
def test_a_name_that_tells_another_task_is_noted(make, uri, noted):
    note = f"task Generate, although {uri} is called otherwise: see docs/how-to/embed-and-score.md"
    assert (note in requested(service(make, qwen3(), uri=uri)).notes) is noted
    assert note not in requested(service(make, qwen3(), uri=uri, task="Generate")).notes


def test_files_of_sentence_transformers_make_a_chat_class_an_embedder_unless_the_user_says_otherwise(make):
    facts = ModelFacts("c0ffee", {**qwen3(), SENTENCE_TRANSFORMERS: True}, None)
    request = requested(service(make, None), facts)
    assert request.task == "Embed"
    assert request.engine.task_args == (("--runner", "pooling"), ("--convert", "embed"))
    assert not request.architecture.writes
    told = requested(service(make, None, task="Generate"), facts)
    assert (told.task, told.engine.task_args) == ("Generate", (("--runner", "generate"),))


def test_a_chat_model_may_embed(make):
    request = requested(service(make, qwen3(), task="Embed"))
    assert request.engine.task_args == (("--runner", "pooling"), ("--convert", "embed"))
    assert "task Embed is set" in request.notes


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        (
            bert(),
            "Generate",
            "task Generate: the model cannot do it, an engine that embeds or scores has no decoder for text."
            " It is for Embed: BertModel is in the group embedding of vLLM 0.32",
        ),
        (bert(), "Score", "task Score: the model cannot do it, it has no classifier's head"),
        (qwen3(), "Transcribe", "task Transcribe: the model cannot do it, it takes no audio"),
        (whisper(), "Embed", "task Embed: the model cannot do it, its answers would not be vectors"),
    ],
)
def test_a_task_that_the_model_cannot_do_is_refused(make, config, task, message):
    with pytest.raises(PlanError) as refused:
        architecture_of(service(make, config, task=task))
    assert refused.value.reason == "TaskNotSupported"
    assert str(refused.value).startswith(message)


def test_a_time_per_token_is_refused_where_there_are_no_tokens(make):
    targets = [{"name": "search", "e2e": "1s"}, {"name": "chat", "tpot": "50ms"}]
    with pytest.raises(PlanError) as refused:
        architecture_of(service(make, bert(), classes=targets))
    assert refused.value.reason == "InvalidTargets"
    assert str(refused.value) == (
        "spec.slo.classes[1].tpot of class chat: a service with task Embed writes no tokens, so there is no time per "
        "token: remove it; ttft and e2e are both the time of the whole answer"
    )


def test_overrides_of_the_models_configuration_are_read_as_the_engine_reads_them(make):
    request = requested(service(make, qwen3(), args=["--hf-overrides", json.dumps(RERANKER)]))
    assert (request.task, request.architecture.name) == ("Score", "Qwen3ForSequenceClassification")
    assert request.architecture.lm_head_bytes == 1024 * 2


@pytest.mark.parametrize("text", ["{", "[]", "7", "[" * 1000])
def test_overrides_that_are_no_object_are_refused(make, text):
    with pytest.raises(PlanError, match=r"^spec.engine.args: --hf-overrides .* is no JSON object$"):
        architecture_of(service(make, qwen3(), args=["--hf-overrides", text]))


@pytest.mark.parametrize(
    ("args", "task"),
    [
        (["--runner", "pooling"], "Embed"),
        (["--convert=embed"], "Embed"),
        (["--convert", "classify"], "Score"),
        (["--runner", "generate"], "Generate"),
    ],
)
def test_the_engines_own_flags_are_understood(make, args, task):
    assert requested(service(make, qwen3(), args=args)).task == task


def test_a_flag_that_contradicts_the_task_is_refused(make):
    with pytest.raises(PlanError, match=r"--runner generate contradicts spec.model.task Embed: leave it out"):
        architecture_of(service(make, qwen3(), task="Embed", args=["--runner", "generate"]))


def test_the_engine_finds_an_embedders_length_itself_unless_it_is_set(make):
    assert requested(service(make, bert())).engine.leaves_length
    assert not requested(service(make, bert(), maxModelLen=128)).engine.leaves_length
    assert not requested(service(make, qwen3())).engine.leaves_length


def test_a_step_holds_what_the_engine_does_not_cut(make):
    assert requested(service(make, bert(), maxModelLen=300)).least_step_tokens == 300
    assert requested(service(make, whisper())).least_step_tokens == 1500
    assert requested(service(make, qwen3())).least_step_tokens == 0


def test_the_planner_knows_whether_the_user_names_the_engines_image(make) -> None:
    found = service(make, qwen3())
    assert not requested(found).engine.own_image
    engine = found.spec.engine.model_copy(update={"image": "mine:1"})
    named = found.model_copy(update={"spec": found.spec.model_copy(update={"engine": engine})})
    assert requested(named).engine.own_image
