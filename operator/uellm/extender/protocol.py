"""The scheduler's extender protocol: its questions read, our answers written. Pure.

Outer keys are those of Go structs (`Pod`, `NodeNames`); inside are Kubernetes objects with their own. A scheduler with
`nodeCacheCapable: true` sends names and wants names; another one sends whole nodes and wants nodes. A list that is
`null` in an answer means "not answered", so an empty one is `[]`. Any status but 200 is an error to the scheduler: what
it may read as a refusal goes into the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from uellm.api.names import GROUP_INDEX_LABEL, GROUP_LABEL, PLAN_ANNOTATION

HIGHEST_SCORE = 10


class BadRequest(ValueError):
    """The body is not what a scheduler sends."""


class _Pod(msgspec.Struct):
    """What is read of a pod; the rest of it, which is most, is passed over."""

    metadata: dict[str, Any] | None = None


class _Args(msgspec.Struct):
    Pod: _Pod
    NodeNames: list[str] | None = None
    Nodes: Any = None


_read = msgspec.json.Decoder(_Args).decode


@dataclass(frozen=True, slots=True)
class ExtenderArgs:
    """What a scheduler asks: a pod, of which the metadata is read, and the nodes that are left for it.

    `nodes` is None where it sent names alone.
    """

    pod: Mapping[str, Any]
    names: tuple[str, ...]
    nodes: tuple[Mapping[str, Any], ...] | None

    @property
    def plan(self) -> str | None:
        """The pod's plan as it is written, or None for a pod that is not ours."""
        return plan_of(self.pod)


def plan_of(pod: Mapping[str, Any]) -> str | None:
    """The text of a pod's annotation `uellm.io/plan`, or None."""
    text = ((pod.get("metadata") or {}).get("annotations") or {}).get(PLAN_ANNOTATION)
    return text if isinstance(text, str) else None


def group_of(pod: Mapping[str, Any]) -> str:
    """The replica that a pod forms with others, by LeaderWorkerSet's labels; empty for a pod that is all of one."""
    metadata = pod.get("metadata") or {}
    labels = metadata.get("labels") or {}
    name, index = labels.get(GROUP_LABEL), labels.get(GROUP_INDEX_LABEL)
    return f"{metadata.get('namespace')}/{name}/{index}" if name and index else ""


def read_args(body: bytes) -> ExtenderArgs:
    """Read `ExtenderArgs`. Raises BadRequest."""
    try:
        document = _read(body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body is no ExtenderArgs: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    pod = {"metadata": document.Pod.metadata}
    if document.NodeNames is not None:
        return ExtenderArgs(pod, tuple(document.NodeNames), None)
    try:
        items = tuple(document.Nodes["items"] or ())
        return ExtenderArgs(pod, tuple(str(item["metadata"]["name"]) for item in items), items)
    except (TypeError, KeyError) as error:
        raise BadRequest("the body has neither `NodeNames` nor `Nodes`") from error


def filter_answer(question: ExtenderArgs, refusals: Mapping[str, str]) -> dict[str, Any]:
    """`ExtenderFilterResult`: the nodes that are not in `refusals`, and why the others are not."""
    nodes = question.nodes
    passing = [name for name in question.names if name not in refusals]
    return {
        "NodeNames": passing if nodes is None else None,
        "Nodes": None if nodes is None else {"items": [n for n in nodes if n["metadata"]["name"] not in refusals]},
        "FailedNodes": dict(refusals),
        "FailedAndUnresolvableNodes": None,
        "Error": "",
    }


def filter_error(message: str) -> dict[str, Any]:
    """`ExtenderFilterResult` of an extender that cannot decide: the scheduler tries the pod again later."""
    return {
        "NodeNames": None,
        "Nodes": None,
        "FailedNodes": None,
        "FailedAndUnresolvableNodes": None,
        "Error": message,
    }


def prioritize_answer(names: Iterable[str], scores: Mapping[str, int]) -> list[dict[str, Any]]:
    """`HostPriorityList`: a bare array."""
    return [{"Host": name, "Score": scores.get(name, 0)} for name in names]
