"""The task of a service: what the user set, or what the model is for. It decides the engine's runner and the targets.

An engine has one runner: `generate` for text and transcripts, `pooling` for vectors and scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from uellm.api.llmservice import LLMService
from uellm.errors import PlanError, ReloadError
from uellm.models import POOLING_TASKS, ModelTasks, Task, tasks_of
from uellm.models.shown import shown
from uellm.planner.vllm.flags import UserArgs

OVERRIDES, RUNNER, CONVERT = "--hf-overrides", "--runner", "--convert"

OTHERWISE = re.compile(r"embed|rerank|bge-|(?:^|[-/])(?:e5|gte)-", re.IGNORECASE)
"""In the names of models that write no text, although the class of some does."""

INSTEAD: Mapping[Task, str] = {
    "Generate": "an engine that embeds or scores has no decoder for text",
    "Embed": "its answers would not be vectors",
    "Score": "it has no classifier's head; where one can be made of the LM head, as of a Qwen3-Reranker, say so in "
    "spec.engine.args with --hf-overrides (docs/how-to/embed-and-score.md)",
    "Transcribe": "it takes no audio",
}
"""Why a model cannot do a task."""


class ServedTask(NamedTuple):
    """The task of a service."""

    task: Task
    note: str
    """A sentence for the plan's assumptions; empty where there is nothing to say."""
    engine_args: tuple[tuple[str, str], ...]
    """Flags and values that tell the engine."""

    @property
    def pools(self) -> bool:
        """Whether an answer is one pass over the prompt."""
        return self.task in POOLING_TASKS


def overridden(config: Mapping[str, Any], service: LLMService) -> dict[str, Any]:
    """config.json with the user's `--hf-overrides`, as the engine reads it. Raises PlanError InvalidOverride."""
    text = UserArgs(service.spec.engine.args).text(OVERRIDES)
    if text is None:
        return dict(config)
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise PlanError("InvalidOverride", f"spec.engine.args: {OVERRIDES} {shown(text)} is no JSON object")
    return {**config, **given}


def served_task(service: LLMService, config: Mapping[str, Any]) -> ServedTask:
    """The task of a service whose model has this config.json. Raises PlanError TaskNotSupported or InvalidTargets."""
    tasks = tasks_of(config)
    asked = _asked(service, tasks)
    task = asked or tasks.inferred
    # Who converts a class with a flag of the engine knows what it can be made.
    if task not in tasks.possible and UserArgs(service.spec.engine.args).text(CONVERT) is None:
        raise PlanError(
            "TaskNotSupported",
            f"task {task}: the model cannot do it, {INSTEAD[task]}. It is for "
            f"{' or '.join(tasks.possible)}: {tasks.why}",
        )
    if task in POOLING_TASKS:
        _check_targets(service, task)
    note = _note(tasks, task, service.spec.model.uri, told=asked is not None)
    return ServedTask(task, note, _engine_args(tasks, task))


def _asked(service: LLMService, tasks: ModelTasks) -> Task | None:
    """The task that the user set, in the spec or by the engine's flags. Raises PlanError InvalidOverride."""
    task, user = service.spec.model.task, UserArgs(service.spec.engine.args)
    runner, convert = user.text(RUNNER), user.text(CONVERT)
    if task is not None:
        pools = task in POOLING_TASKS
        if runner not in (None, "auto", "pooling" if pools else "generate"):
            raise PlanError(
                "InvalidOverride",
                f"spec.engine.args: {RUNNER} {runner} contradicts spec.model.task {task}: leave it out",
            )
        return task
    if convert in ("embed", "classify"):
        return "Embed" if convert == "embed" else "Score"
    if runner == "pooling":
        return next((each for each in tasks.possible if each in POOLING_TASKS), "Embed")
    return "Generate" if runner == "generate" and tasks.inferred in POOLING_TASKS else None


def _note(tasks: ModelTasks, task: Task, uri: str, *, told: bool) -> str:
    if told:
        return "" if task == "Generate" == tasks.inferred else f"task {task} is set"
    if task == "Generate":
        called = f"task Generate, although {uri} is called otherwise: see docs/how-to/embed-and-score.md"
        return called if OTHERWISE.search(uri) else ""
    another = "; set spec.model.task for another one" if len(tasks.possible) > 1 else ""
    return f"task {task}, because {tasks.why}{another}"


def _engine_args(tasks: ModelTasks, task: Task) -> tuple[tuple[str, str], ...]:
    if task not in POOLING_TASKS:
        return () if tasks.engine_default not in POOLING_TASKS else ((RUNNER, "generate"),)
    # A class that writes text is made an embedder; a classifier's head comes with its class.
    converted = task == "Embed" and "Generate" in tasks.possible
    return ((RUNNER, "pooling"), *(((CONVERT, "embed"),) if converted else ()))


def _check_targets(service: LLMService, task: Task) -> None:
    for index, each in enumerate(service.spec.slo.classes):
        if each.tpot is not None:
            raise ReloadError(
                "InvalidTargets",
                f"spec.slo.classes[{index}].tpot of class {each.name}: a service with task {task} writes no tokens, so "
                "there is no time per token: remove it; ttft and e2e are both the time of the whole answer",
            )
