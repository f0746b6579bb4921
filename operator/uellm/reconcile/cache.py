"""The last known state of the cluster: a dictionary of objects, filled by watches and by our own writes.

It may lag behind: a decision made on an old state is corrected by the next event. It never goes back: an older version
of an object does not replace a newer one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from uellm.api.names import DOWNLOAD_LABEL, INSPECTION_LABEL, MEASURING_LABEL, SERVICE_LABEL
from uellm.hardware import DRA_DRIVER
from uellm.kube.kinds import (
    CONFIGMAP,
    DEPLOYMENT,
    DEVICECLASS,
    GPUNODECLASS,
    GPUNODEPROFILE,
    LLMSERVICE,
    NODE,
    PDB,
    POD,
    PVC,
    RESOURCECLAIM,
    RESOURCECLAIMTEMPLATE,
    RESOURCESLICE,
    SERVICE,
    Kind,
)
from uellm.reconcile.dra.index import ClaimIndex
from uellm.reconcile.dra.support import DraSupport
from uellm.reconcile.kueue import gates
from uellm.reconcile.lean_objects import lean
from uellm.reconcile.names import Key, possible_owners
from uellm.reconcile.node_class import NodeClass, node_class
from uellm.reconcile.optional_kinds import DRA_KINDS, OPTIONAL_KINDS, Availability
from uellm.reconcile.profiled_node import ProfiledNode, profiled_node, with_claims
from uellm.reconcile.scaling.scaling import chosen_before
from uellm.reconcile.stored import Object, Stored, stored

CHILD_KINDS = (CONFIGMAP, SERVICE, PDB, DEPLOYMENT)
_COUNTED = (LLMSERVICE, GPUNODEPROFILE, GPUNODECLASS, NODE, POD, *DRA_KINDS)
"""Kinds whose changes may matter to plans."""
_GROUPED = (POD, CONFIGMAP, RESOURCECLAIMTEMPLATE)
"""Kinds of which a service may have several."""
_HELPER_LABELS = (INSPECTION_LABEL, DOWNLOAD_LABEL)
WATCHED_KINDS = (LLMSERVICE, GPUNODEPROFILE, GPUNODECLASS, NODE, *CHILD_KINDS, PVC, POD)


class Changes:
    """What may matter to plans and has changed since it was last looked at."""

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.services: dict[Key, None] = {}
        """Services whose replicas or pods have changed, in the order of the first change."""


class Cache:
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        kinds = (*WATCHED_KINDS, *OPTIONAL_KINDS)
        self._objects: dict[Kind, dict[tuple[str, str], Stored]] = {kind: {} for kind in kinds}
        self.available = dict.fromkeys(OPTIONAL_KINDS, Availability.NOT_INSTALLED)
        """Whether the cluster has the kinds of other projects."""
        self._pods: defaultdict[Key, dict[str, Stored]] = defaultdict(dict)
        self._measuring_pods: dict[tuple[str, str], Object] = {}
        self._helper_pods: dict[str, defaultdict[Key, dict[str, Stored]]]
        self._helper_pods = {label: defaultdict(dict) for label in _HELPER_LABELS}
        self._configmaps: defaultdict[Key, dict[str, Stored]] = defaultdict(dict)
        self._claim_templates: defaultdict[Key, dict[str, Stored]] = defaultdict(dict)
        self._claim_index = ClaimIndex()
        self._profiled: dict[str, ProfiledNode] = {}
        """Parsed when first asked for."""
        self._all_profiled: tuple[ProfiledNode, ...] | None = None
        self._node_classes: tuple[NodeClass, ...] | None = None
        """As far as they were asked for."""
        self.hardware_version = 0
        """Grows when a node joins, leaves, or has other GPUs, labels or taints: then every plan is checked again."""
        self.room_version = 0
        """Grows when GPUs may have become free or taken: then plans that wait for room are checked again."""
        self.stale_profiles: Mapping[str, str] = {}
        """Why profiles that nobody keeps are not planned on, by node."""
        self._changes = Changes()

    @property
    def dra(self) -> DraSupport:
        """What there is for pods that claim GPUs."""
        forbidden = [kind.plural for kind in DRA_KINDS if self.available[kind] is Availability.FORBIDDEN]
        return DraSupport(
            served=all(self.available[kind] is Availability.SERVED for kind in DRA_KINDS),
            forbidden=", ".join(forbidden),
            device_class=self.get(DEVICECLASS, DRA_DRIVER) is not None,
            gpus=self._claim_index.gpus,
        )

    def claimed(self, pod_uid: str) -> tuple[str, ...]:
        """Uuids of the GPUs that a pod's claim holds, in the order of the stages."""
        return self._claim_index.devices_of(pod_uid)

    def set_stale_profiles(self, reasons: Mapping[str, str]) -> bool:
        """Say which profiles are stale now; return whether that is new."""
        if reasons == self.stale_profiles:
            return False
        self.stale_profiles = reasons
        self.hardware_version += 1
        return True

    def take_changes(self) -> Changes:
        """The changes since the last call. There is one caller."""
        taken, self._changes = self._changes, Changes()
        return taken

    def put(self, kind: Kind, obj: Mapping[str, Any]) -> bool:
        """Store an object. False where it is no newer than the stored one."""
        place = place_of(obj)
        known = self._objects[kind].get(place)
        if known is not None and not _newer(obj, known.identity[1]):
            return False
        # Only where it matters what has changed: the others need not be read.
        before = known.object if known is not None and kind in _COUNTED else None
        facts = self._profiled.get(place[1]) if kind == GPUNODEPROFILE else None
        if known is not None:
            self._drop(kind, place)
        kept = lean(kind, obj)
        entry = self._objects[kind][place] = stored(kind, kept)
        self._index(kind, place)
        if _is_measuring(kind, kept):
            self._measuring_pods[place] = kept
        if (grouped := self._grouped(kind, kept)) is not None:
            for service in _services_of(kind, kept):
                grouped[service][place[1]] = entry
        self._count_versions(kind, place, before, kept, facts)
        return True

    def remove(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        """Drop a deleted object. A newer object of the same name stays."""
        known = self._objects[kind].get(place_of(obj))
        if known is not None and known.identity[0] == obj["metadata"].get("uid"):
            self._forget(kind, place_of(obj), known)

    def snapshot(self, kind: Kind) -> dict[tuple[str, str], Stored]:
        """All objects of a kind; taken before a full list is requested."""
        return dict(self._objects[kind])

    def still_has(self, kind: Kind, place: tuple[str, str], known: Stored) -> bool:
        """Whether an object is as it was when a snapshot was taken."""
        return self._objects[kind].get(place) is known

    def replace(
        self, kind: Kind, objects: Iterable[Mapping[str, Any]], *, before: Mapping[tuple[str, str], Stored]
    ) -> None:
        """Replace the objects of a kind by a full list. `before`: the snapshot taken before it was requested."""
        listed = {place_of(obj): obj for obj in objects}
        for place, known in before.items():
            # An object that changed since the snapshot is newer than the list.
            if place not in listed and self.still_has(kind, place, known):
                self._forget(kind, place, known)
        for place, obj in listed.items():
            # What was deleted since the snapshot is on the list, because the list is older.
            if place not in before or place in self._objects[kind]:
                self.put(kind, obj)

    def get(self, kind: Kind, name: str, namespace: str = "") -> Object | None:
        """One object, or None. It is shared: never change it."""
        known = self._objects[kind].get((namespace, name))
        return None if known is None else known.object

    def service(self, key: Key) -> Object | None:
        """An LLMService, or None."""
        return self.get(LLMSERVICE, key.name, key.namespace)

    def has_service(self, key: Key) -> bool:
        """Whether there is an LLMService."""
        return (key.namespace, key.name) in self._objects[LLMSERVICE]

    def services(self) -> Iterator[Object]:
        """Every LLMService, in the order of namespace and name. One at a time, because each has to be read."""
        return (known.object for _, known in sorted(self._objects[LLMSERVICE].items()))

    def service_keys(self) -> list[Key]:
        """The key of every LLMService."""
        return [Key(*place) for place in sorted(self._objects[LLMSERVICE])]

    def profiled_nodes(self) -> tuple[ProfiledNode, ...]:
        """Every profiled node, in the order of their names."""
        if self._all_profiled is None:
            found = (self.profiled_node(name) for _, name in sorted(self._objects[GPUNODEPROFILE]))
            self._all_profiled = tuple(node for node in found if node is not None)
        return self._all_profiled

    def profiled_node(self, name: str) -> ProfiledNode | None:
        """One profiled node, or None where it has no profile."""
        profile = self.get(GPUNODEPROFILE, name)
        if profile is None:
            return None
        if name not in self._profiled:
            index = self._claim_index
            published, holders = index.published(name), index.holders(name)
            self._profiled[name] = with_claims(profiled_node(profile), published, holders, self._offered(profile))
        return self._profiled[name]

    def _offered(self, profile: Object) -> set[str]:
        """The GPUs that the kubelet was seen to offer; all of them where claims back the extended resource."""
        devices = (profile.get("status") or {}).get("devices") or ()
        backed = ((self.get(DEVICECLASS, DRA_DRIVER) or {}).get("spec") or {}).get("extendedResourceName")
        return {each["uuid"] for each in devices if backed or "resourceName" in each}

    def profiles(self) -> list[Object]:
        """Every GPUNodeProfile."""
        return [known.object for known in self._objects[GPUNODEPROFILE].values()]

    def node_classes(self) -> tuple[NodeClass, ...]:
        """Every class of nodes that may join, in the order of their names."""
        if self._node_classes is None:
            documents = (known.object for _, known in sorted(self._objects[GPUNODECLASS].items()))
            self._node_classes = tuple(map(node_class, documents))
        return self._node_classes

    def node(self, name: str) -> Object | None:
        """A Node's labels and taints, or None."""
        return self.get(NODE, name)

    def pods(self, key: Key) -> list[Object]:
        """The pods of a service's engines, in the order of their names."""
        pods = self._pods.get(key, {})
        return [pods[name].object for name in sorted(pods)]

    def inspection_pods(self, key: Key) -> list[Object]:
        """The pods that look a service's model up, in the order of their names."""
        return self._helpers(INSPECTION_LABEL, key)

    def download_pods(self, key: Key) -> list[Object]:
        """The pods that copy a service's model, in the order of their names."""
        return self._helpers(DOWNLOAD_LABEL, key)

    def _helpers(self, label: str, key: Key) -> list[Object]:
        pods = self._helper_pods[label].get(key, {})
        return [pods[name].object for name in sorted(pods)]

    def measuring_pods(self) -> dict[str, list[Object]]:
        """The pods that measure GPUs, by node."""
        found: dict[str, list[Object]] = {}
        for pod in self._measuring_pods.values():
            found.setdefault(pod["spec"].get("nodeName") or "", []).append(pod)
        return found

    def configmaps(self, key: Key) -> list[Object]:
        """The ConfigMaps that may be a service's, in the order of their names."""
        found = self._configmaps.get(key, {})
        return [found[name].object for name in sorted(found)]

    def claim_templates(self, key: Key) -> list[Object]:
        """The ResourceClaimTemplates that may be a service's, in the order of their names."""
        found = self._claim_templates.get(key, {})
        return [found[name].object for name in sorted(found)]

    def _grouped(self, kind: Kind, obj: Mapping[str, Any]) -> defaultdict[Key, dict[str, Stored]] | None:
        if kind != POD:
            return {CONFIGMAP: self._configmaps, RESOURCECLAIMTEMPLATE: self._claim_templates}.get(kind)
        label = _helper_label(obj)
        return self._helper_pods[label] if label else self._pods

    def _index(self, kind: Kind, place: tuple[str, str]) -> None:
        if kind == GPUNODEPROFILE:
            self._profiled.pop(place[1], None)
            self._all_profiled = None
        elif kind == GPUNODECLASS:
            self._node_classes = None

    def _count_versions(
        self,
        kind: Kind,
        place: tuple[str, str],
        before: Object | None,
        after: Object | None,
        known: ProfiledNode | None,
    ) -> None:
        """`known`: the profile as it was parsed before; None where it was not."""
        if kind == GPUNODEPROFILE:
            now = None if after is None or known is None else self.profiled_node(place[1])
            if now is not None and known is not None and now.facts == known.facts:
                # Whoever has worked something out from these facts knows them again.
                if now.facts.network == known.facts.network:
                    now = known if now.holders == known.holders else known.with_holders(now.holders)
                self._profiled[place[1]] = now
            if now is None or now is not known:
                self.hardware_version += now is None or known is None or now.facts != known.facts
                self.room_version += now is None or known is None or now.holders != known.holders
                self._changes.nodes.add(place[1])
        elif kind == POD:
            # Those that look models up, or copy them, need no GPUs, and those of a pod that measures are free.
            apart = _helper_label(before or after) or _is_measuring(POD, before or after)
            if _seat(before) != _seat(after) and not apart:
                self.room_version += 1
                for pod in filter(None, (before, after)):
                    self._changes.services.update(dict.fromkeys(_services_of(POD, pod)))
        elif kind == LLMSERVICE and _demand(before) != _demand(after):
            self.room_version += 1
            self._changes.services[Key(*place)] = None
        else:
            self._count_hardware(kind, place, before, after)

    def _count_hardware(self, kind: Kind, place: tuple[str, str], before: Object | None, after: Object | None) -> None:
        if kind == NODE:
            self.hardware_version += _unversioned(before) != _unversioned(after)
        elif kind == GPUNODECLASS:
            self.hardware_version += (before or {}).get("spec") != (after or {}).get("spec")
        elif kind == DEVICECLASS:
            self.hardware_version += (before is None) != (after is None)
        elif kind == RESOURCESLICE:
            self._join_again(self._claim_index.set_slice(place[1], before, after))
        elif kind == RESOURCECLAIM:
            self._join_again(self._claim_index.set_claim(place, after))

    def _join_again(self, nodes: Iterable[str]) -> None:
        """Other GPUs of these nodes are published, or held by claims."""
        for name in nodes:
            profile, known = self.get(GPUNODEPROFILE, name), self._profiled.get(name)
            if profile is not None:
                self._index(GPUNODEPROFILE, ("", name))
                self._count_versions(GPUNODEPROFILE, ("", name), profile, profile, known)

    def _forget(self, kind: Kind, place: tuple[str, str], known: Stored) -> None:
        """Drop an object that is gone."""
        before = known.object
        self._drop(kind, place)
        self._count_versions(kind, place, before, None, None)

    def _drop(self, kind: Kind, place: tuple[str, str]) -> None:
        known = self._objects[kind].pop(place)
        if kind == POD:
            self._measuring_pods.pop(place, None)
        self._index(kind, place)
        if kind in _GROUPED and (grouped := self._grouped(kind, obj := known.object)) is not None:
            for service in _services_of(kind, obj):
                grouped[service].pop(place[1], None)
                if not grouped[service]:
                    del grouped[service]


def place_of(obj: Mapping[str, Any]) -> tuple[str, str]:
    """Namespace and name."""
    return obj["metadata"].get("namespace") or "", obj["metadata"]["name"]


def _services_of(kind: Kind, obj: Mapping[str, Any]) -> set[Key]:
    """The services under which an object is looked up: a pod by its label alone, for its owner is a ReplicaSet."""
    if kind != POD:
        return possible_owners(obj)
    name = (obj["metadata"].get("labels") or {}).get(_helper_label(obj) or SERVICE_LABEL)
    return {Key(obj["metadata"]["namespace"], name)} if name else set()


def _helper_label(pod: Mapping[str, Any] | None) -> str:
    """The label that says for which service a helper pod works; empty for any other pod.

    With the label of a service it would be one of its engine's.
    """
    labels = ((pod or {}).get("metadata") or {}).get("labels") or {}
    return next((each for each in _HELPER_LABELS if each in labels and not labels.get(SERVICE_LABEL)), "")


def _is_measuring(kind: Kind, obj: Mapping[str, Any] | None) -> bool:
    """Whether it is a pod that measures GPUs."""
    return kind == POD and MEASURING_LABEL in (((obj or {}).get("metadata") or {}).get("labels") or {})


def _newer(obj: Mapping[str, Any], version: Any) -> bool:
    # Resource versions are increasing numbers: guaranteed since Kubernetes 1.35, and true before.
    try:
        return int(obj["metadata"]["resourceVersion"]) > int(version)
    except (KeyError, TypeError, ValueError):
        return True


def _unversioned(node: Object | None) -> Any:
    metadata = {} if node is None else {**node["metadata"], "resourceVersion": ""}
    return node and {**node, "metadata": metadata}


def _seat(pod: Object | None) -> Any:
    """Where a pod sits, or whether it looks for a seat, as long as it needs GPUs there."""
    if pod is None:
        return None
    node, phase = pod["spec"].get("nodeName"), pod["status"].get("phase")
    return pod["metadata"]["uid"], node, phase, pod["gpus"], bool(gates(pod))


def _demand(service: Object | None) -> Any:
    """What the replicas that a service wants depend on: its spec, and the number that the operator chose."""
    return service and (
        service["metadata"].get("uid"),
        service["metadata"].get("generation"),
        chosen_before(service) if service["spec"].get("autoscaling") else None,
    )
