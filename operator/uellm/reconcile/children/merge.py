"""The user's pod template merged over ours, as `kubectl patch --type=strategic` would.

Maps merge deeply. Lists whose elements have an identity (containers, volumes, env ...) merge element by element, and
new elements are appended. Tolerations and affinity terms are added to ours. Any other list or value replaces ours;
`null` removes it. Where a map may hold only one of several things (a volume's source, a probe's handler), the user's
choice replaces ours. Whether the result is a valid pod is checked by the API server's dry run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from uellm.errors import BadInput

_IDENTITY = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
# Elements of these are replaced as a whole: an emptyDir merged with a claim, or a value with a valueFrom, is invalid.
_WHOLE = {"volumes", "env"}
_ADDED = {
    "tolerations",
    "envFrom",
    "preferredDuringSchedulingIgnoredDuringExecution",
}
_HANDLERS = {"exec", "httpGet", "tcpSocket", "grpc", "sleep"}
_TERMS = "nodeSelectorTerms"


def merge_template(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The pod template `ours` with `theirs` (`{metadata, spec}`) over it. Raises BadInput with the field's path."""
    return _merge_maps(ours, theirs, "spec.template")


def _merge_maps(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str) -> dict[str, Any]:
    merged = copy.deepcopy(dict(ours))
    if _HANDLERS & theirs.keys():
        merged = {name: value for name, value in merged.items() if name not in _HANDLERS}
    for name, value in theirs.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(name, merged.get(name), value, f"{path}.{name}")
    return merged


def _merge(name: str, ours: Any, theirs: Any, path: str) -> Any:
    if isinstance(ours, Mapping):
        if not isinstance(theirs, Mapping):
            raise BadInput(path, f"must be a map, because it is merged over the operator's own; it is {_kind(theirs)}")
        return _merge_maps(ours, theirs, path)
    if isinstance(ours, list):
        if not isinstance(theirs, list):
            raise BadInput(path, f"must be a list, because it is merged over the operator's own; it is {_kind(theirs)}")
        return _merge_lists(name, ours, theirs, path)
    return copy.deepcopy(theirs)


def _merge_lists(name: str, ours: list[Any], theirs: list[Any], path: str) -> list[Any]:
    if name in _ADDED:
        return [*ours, *(copy.deepcopy(entry) for entry in theirs if entry not in ours)]
    if name == _TERMS:
        return _both_terms(ours, theirs, path)
    if name in _IDENTITY:
        return _merge_named(ours, theirs, _IDENTITY[name], path, whole=name in _WHOLE)
    return copy.deepcopy(theirs)


def _merge_named(ours: list[Any], theirs: list[Any], identity: str, path: str, *, whole: bool) -> list[Any]:
    merged = copy.deepcopy(ours)
    places = {entry[identity]: index for index, entry in enumerate(ours)}
    for number, entry in enumerate(theirs):
        where = f"{path}[{number}]"
        if not isinstance(entry, Mapping) or identity not in entry:
            raise BadInput(where, f"needs `{identity}`, by which it is merged over the operator's own")
        if isinstance(entry[identity], Mapping | list):
            raise BadInput(f"{where}.{identity}", f"must be a single value; it is {_kind(entry[identity])}")
        place = places.get(entry[identity])
        if place is None:
            merged.append(copy.deepcopy(dict(entry)))
        elif whole:
            merged[place] = copy.deepcopy(dict(entry))
        else:
            merged[place] = _merge_maps(merged[place], entry, where)
    return merged


def _both_terms(ours: Sequence[Any], theirs: Sequence[Any], path: str) -> list[Any]:
    """Terms are alternatives (OR), so "ours and theirs" is every pair of one of ours and one of theirs."""
    pairs = []
    for number, their in enumerate(theirs):
        if not isinstance(their, Mapping):
            raise BadInput(f"{path}[{number}]", "must be a map of matchExpressions and matchFields")
        pairs += [_both(our, their) for our in ours]
    return pairs


def _both(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [*ours, *(kind for kind in theirs if kind not in ours)]
    return {kind: copy.deepcopy([*(ours.get(kind) or ()), *(theirs.get(kind) or ())]) for kind in kinds}


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a map" if isinstance(value, Mapping) else f"{value!r}"
