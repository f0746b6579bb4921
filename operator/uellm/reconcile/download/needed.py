"""Which copies on a claim are needed by pods, so that others may make room for the next one. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from uellm.errors import PlanError
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.speculation import speculation_of
from uellm.pod_interface import PLAN_FILE, SIDECAR_FILE
from uellm.reconcile.adapters import read_told
from uellm.reconcile.download.kept_copy import directories
from uellm.reconcile.model_claim import MODEL_MOUNT
from uellm.reconcile.names import Key, config_name, revision_label, revision_name, weights_name

Object = Mapping[str, Any]


def needed_copies(
    document: Object,
    configmaps: Mapping[str, Object],
    deployment: Object | None,
    pods: Iterable[Object],
    replicasets: Iterable[Object],
) -> set[str] | None:
    """Directories below that of a volume that a service needs, whichever volume it is; None where that is not known.

    They are those of every revision that has pods, or from which pods may be started, of the copies noted last, of
    adapters that sidecars are told of, and of what the spec names on claims.
    """
    key = Key(document["metadata"]["namespace"], document["metadata"]["name"])
    labelled = [each["spec"]["template"] for each in replicasets if _runs(each)]
    labelled += [deployment["spec"]["template"]] if deployment is not None else []
    names = {revision_label(each) for each in (*labelled, *pods)} | {(document.get("status") or {}).get("revision")}
    model = document["spec"]["model"]
    found = {_path_on_claim(each.get("uri") or "") for each in (model, *(model.get("adapters") or ()))}
    told = read_told(configmaps.get(config_name(key.name)), SIDECAR_FILE)
    adapters = (*told.adapters, *(each for those in told.of_revisions for each in those.adapters))
    found |= {_below_mount(each.path) for each in adapters}
    for name in filter(None, names):
        places = _models_of(configmaps.get(revision_name(key.name, name)))
        if places is None:
            return None
        found |= places
    return found | directories(configmaps.get(weights_name(key.name)) or {})


def _runs(replicaset: Object) -> bool:
    return bool(replicaset["spec"].get("replicas") or (replicaset.get("status") or {}).get("replicas"))


def _path_on_claim(uri: str) -> str:
    return uri.removeprefix("pvc://").partition("/")[2].strip("/") if uri.startswith("pvc://") else ""


def _models_of(revision: Object | None) -> set[str] | None:
    """Where the engines of a revision find their model and its draft, below MODEL_MOUNT; empty for elsewhere."""
    try:
        engine = json.loads(revision["data"][PLAN_FILE])["engine"] if revision is not None else {}
        model, args = engine["model"], tuple(map(str, engine.get("args") or ()))
    except (KeyError, TypeError, ValueError):
        return None
    return {_below_mount(model), _below_mount(_draft_of(args))} if isinstance(model, str) else None


def _draft_of(args: tuple[str, ...]) -> str:
    try:
        speculation = speculation_of(UserArgs(args))
    except PlanError:
        return ""  # accepted by an earlier release, which copied no drafts
    return speculation.model if speculation is not None else ""


def _below_mount(path: str) -> str:
    return path.removeprefix(f"{MODEL_MOUNT}/") if path.startswith(f"{MODEL_MOUNT}/") else ""
