"""The only writer. It checks names and tries the Deployment, then writes what differs, the status before the rest.

The status goes first because it holds the plan: a decision is on record before anything follows from it. So an operator
that dies between two writes is continued by the next one. More replicas of a plan that is on record already go ahead of
it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

from uellm.api.names import SERVICE_LABEL
from uellm.errors import CannotBeDone
from uellm.kube import LLMSERVICE, Conflict, Forbidden, Invalid, Kind, Kube, KubeError, NotFound, Unavailable
from uellm.kube.kinds import (
    CONFIGMAP,
    CORE_EVENT,
    DEPLOYMENT,
    FORMER_WORKLOAD,
    LEADERWORKERSET,
    POD,
    PVC,
    REPLICASET,
    RESOURCECLAIMTEMPLATE,
    WORKLOAD,
    kind_of,
)
from uellm.kube.slots import URGENT_BESIDES, Slots
from uellm.reconcile.additions import additions
from uellm.reconcile.cache import Cache
from uellm.reconcile.children.disruption import MarkedPod
from uellm.reconcile.children.leader_worker_set import as_new, kept_size, trial_deployments
from uellm.reconcile.conditions import Condition
from uellm.reconcile.drift import content, digest, holds
from uellm.reconcile.event import event_of
from uellm.reconcile.event_writer import EventWriter
from uellm.reconcile.kueue import queue_labels, workload_selector
from uellm.reconcile.lean_objects import lean
from uellm.reconcile.left_behind import ClaimHolders
from uellm.reconcile.names import (
    APPLIED_ANNOTATION,
    COST_ANNOTATION,
    MANAGER,
    Key,
    belonged_to_namesake,
    belongs_to,
    config_name,
    controller_of,
)
from uellm.reconcile.observe import Observed, child_names
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.pods.pod_failures import Removal
from uellm.reconcile.scaling.deletion_costs import CostMark
from uellm.text import and_more

logger = logging.getLogger(__name__)

Manifest = Mapping[str, Any]
_Identity = tuple[Kind, str, str]
NAME_TAKEN = "NameTaken"
LEFT_BEHIND = "LeftBehind"
"""A child of a deleted service of the same name still exists. It goes by itself, as a rule within a second."""
_CAUSES = (NAME_TAKEN, LEFT_BEHIND)
"""Other refusals may follow from these."""
TRIES = 3
"""Of an edit that depends on the version of an object."""
_PODS_NAMED = 3
EXPLAINED_WITHIN_S = 10.0
"""For which a pass waits for the words of others about a pod."""
WORKLOAD_KINDS = (DEPLOYMENT, LEADERWORKERSET)
"""Those that make the engine's pods. A service has one of them."""


class WriteRefused(CannotBeDone):
    """A child was refused that had not been tried first. The next pass tries it, and reports why."""

    transient = True


class Applier:
    """Writes through `kube`, and puts the results into the cache: the watch may be slower than the next pass."""

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        *,
        instance: str = "uellm-controller",
        events: EventWriter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`events`: creates Events; None: at once. `clock`: in seconds."""
        self._kube = kube
        self._cache = cache
        self._instance = instance
        self._events = events or EventWriter(kube)
        # Digests of manifest and live object for which a write changed nothing although a field differs: the server
        # normalises some values.
        self._equal: dict[_Identity, tuple[str, str]] = {}
        self._refused: dict[Key, set[_Identity]] = {}
        self._explanations = Slots(urgent_besides=URGENT_BESIDES)
        self._claim_holders = ClaimHolders(self._pods_in, clock)

    def differing(self, observed: Observed, manifests: Iterable[Manifest]) -> list[Manifest]:
        """The manifests that the cluster does not match."""
        return [manifest for manifest in manifests if not self._same(manifest, _live(observed, manifest))]

    async def refusal(self, observed: Observed, manifests: Sequence[Manifest]) -> Obstacle | None:
        """Why these cannot be written, found without writing: a name is taken, or an object is refused.

        A dry run costs the API server as much as a write. So only another pod template, which holds the user's, another
        queue, and what was refused before are tried; of other new objects only the names are looked up.
        """
        refusals, refused = [], self._refused.get(observed.key, ())
        for manifest in manifests:
            if has_other_pods(observed, manifest) or _identity(manifest) in refused:
                refusals.append(await self._try(observed, manifest))
            elif _live(observed, manifest) is None:
                refusals.append(await self._taken(observed, manifest))
        found = [each for each in refusals if each is not None]
        return min(found, key=lambda each: each.reason not in _CAUSES, default=None)

    async def only_as_new(self, observed: Observed, manifests: Sequence[Manifest]) -> bool:
        """Whether these are refused only because a LeaderWorkerSet is there that keeps what it was made with.

        Kueue lets none that it queues change its queue, or what its pods request.
        """
        groups = next((each for each in manifests if kind_of(each) == LEADERWORKERSET), None)
        live = None if groups is None else _live(observed, groups)
        if groups is None or live is None or not (queue_labels(live) or queue_labels(groups)):
            return False
        others = [each for each in manifests if each is not groups]
        return (
            await self._try(observed, groups) is not None
            and await self._try_on(None, observed, as_new(groups)) is None
            and await self.refusal(observed, others) is None
        )

    async def writable(self, observed: Observed, manifests: Iterable[Manifest]) -> list[Manifest]:
        """Those that are there, and those that may be made: not with a name that others have, and not if refused."""
        refused = self._refused.get(observed.key, ())
        found = []
        for manifest in manifests:
            if _live(observed, manifest) is None or _identity(manifest) in refused:
                try:
                    if await self._try(observed, manifest) is not None:
                        continue
                except KubeError as error:
                    # The status, which says what is wrong with the spec, does not wait for it.
                    logger.warning("%s: %s is left for the next pass: %s", observed.key, manifest["kind"], error)
                    continue
            found.append(manifest)
        return found

    async def write_status(self, observed: Observed, status: Mapping[str, Any]) -> None:
        """Write the status if it differs."""
        if equal_status(status, observed.status):
            return
        metadata = observed.document["metadata"]
        written = await self._kube.apply_status(
            {
                "apiVersion": LLMSERVICE.api_version,
                "kind": LLMSERVICE.kind,
                "metadata": {name: metadata[name] for name in ("name", "namespace", "uid")},
                "status": status,
            },
            manager=MANAGER,
        )
        self._cache.put(LLMSERVICE, written)

    async def write_children(self, observed: Observed, manifests: Iterable[Manifest]) -> None:
        """Apply the manifests in this order. Raises WriteRefused."""
        for manifest in manifests:
            live = await self._replaceable(manifest, _live(observed, manifest))
            await self._take_out_additions(observed.key, manifest, live)
            written = await self._written(observed.key, _against(manifest, live))
            kind = kind_of(manifest)
            self._cache.put(kind, written)
            if live is not None and content(live) == content(written):
                self._equal[_identity(manifest)] = (digest(manifest), content(written))
            else:
                logger.info("%s applied %s %s", observed.key, kind.kind, manifest["metadata"]["name"])

    async def _written(self, key: Key, manifest: Manifest) -> dict[str, Any]:
        try:
            written = await self._kube.apply(manifest, manager=MANAGER)
        except KubeError as error:
            refused = _refusal(kind_of(manifest), error)
            self._refused.setdefault(key, set()).add(_identity(manifest))
            raise WriteRefused(refused.message) from error
        self._refused.get(key, set()).discard(_identity(manifest))
        return written

    async def delete(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        """Delete a child, if it still is this very object."""
        metadata = obj["metadata"]
        await self._kube.delete(kind, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        self._cache.remove(kind, obj)

    @property
    def known(self) -> Cache:
        """The last known state of the cluster."""
        return self._cache

    def stored(self, kind: Kind, name: str, namespace: str) -> Mapping[str, Any] | None:
        """An object as it was written or seen last; None where there is none."""
        return self._cache.get(kind, name, namespace)

    async def create_pod(self, observed: Observed, manifest: Manifest) -> None:
        """Create a pod. Raises KubeError."""
        written = await self._kube.create(manifest)
        self._cache.put(POD, written)
        logger.info("%s created pod %s", observed.key, written["metadata"]["name"])

    async def try_pod(self, manifest: Manifest) -> Mapping[str, Any]:
        """Create a pod as a dry run, and return what it would be. Raises KubeError."""
        return await self._kube.create(manifest, dry_run=True)

    async def replicasets(self, key: Key) -> list[dict[str, Any]]:
        """The ReplicaSets of a service's Deployment."""
        return await self._kube.list(REPLICASET, key.namespace, label_selector=f"{SERVICE_LABEL}={key.name}")

    async def replicasets_in(self, namespace: str) -> list[dict[str, Any]]:
        """The ReplicaSets of all services of a namespace."""
        return await self._kube.list(REPLICASET, namespace, label_selector=SERVICE_LABEL)

    async def _replaceable(self, manifest: Manifest, live: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The live object; None where it was in the way and has been deleted.

        An immutable object whose content does not match its name was put there by hand.
        """
        if live is None or not _is_forged(manifest, live):
            return live
        await self.delete(kind_of(manifest), live)
        return None

    async def _take_out_additions(self, key: Key, manifest: Manifest, live: Mapping[str, Any] | None) -> None:
        """Remove what somebody added to the spec of a child: server-side apply would leave it there."""
        for tries_left in reversed(range(TRIES)):
            if live is None or not (paths := additions(manifest, live).removable):
                return
            # As an object of a list, it may not say what it is.
            named = {**live, **{name: manifest[name] for name in ("apiVersion", "kind")}}
            try:
                await self._kube.remove_fields(named, paths, manager=MANAGER)
            except Conflict:
                if not tries_left:
                    raise
                # Its controller writes to its status all the time.
                live = await self._reread(manifest, live["metadata"]["uid"])
                continue
            except (Forbidden, Invalid) as error:
                raise WriteRefused(_refusal(kind_of(manifest), error).message) from error
            fields = ", ".join(".".join(str(step) for step in path) for path in reversed(paths))
            logger.info("%s took out of %s what others had added: %s", key, _identity(manifest)[2], fields)
            return

    async def _reread(self, manifest: Manifest, uid: str) -> Mapping[str, Any] | None:
        """The child as it is now; None where it is gone, or another object has its name."""
        kind, metadata = kind_of(manifest), manifest["metadata"]
        found = await self._kube.get(kind, metadata["name"], metadata["namespace"])
        return lean(kind, found) if found is not None and found["metadata"]["uid"] == uid else None

    async def remove_pods(self, observed: Observed, removals: Iterable[Removal]) -> None:
        """Delete these pods. One that is gone already, or has another uid, is left alone."""
        for each in removals:
            grace_s = 0 if each.force else None
            if await self._kube.delete(POD, each.pod, observed.key.namespace, uid=each.uid, grace_s=grace_s):
                logger.info("%s deleted pod %s", observed.key, each.pod)

    async def lift_marks(self, observed: Observed, marked: Iterable[MarkedPod]) -> None:
        """Remove autoscalers' marks from these pods."""
        for each in marked:
            marks = dict.fromkeys(each.marks)
            if await self._kube.annotate(POD, each.pod, observed.key.namespace, marks, uid=each.uid):
                logger.info("%s pod %s may be disrupted: it serves, or cannot", observed.key, each.pod)

    async def mark_costs(self, observed: Observed, marks: Iterable[CostMark]) -> None:
        """Annotate these pods. Nothing waits for it: without marks Kubernetes chooses the pods that end."""
        for each in marks:
            try:
                if await self._kube.annotate(POD, each.pod, observed.key.namespace, each.annotations, uid=each.uid):
                    cost = each.annotations[COST_ANNOTATION]
                    logger.info("%s pod %s %s", observed.key, each.pod, "may stay" if cost is None else "is to end")
            except KubeError as error:
                logger.warning("%s: pod %s is not marked as one to end: %s", observed.key, each.pod, error)

    async def pod_events(self, pod: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The Events about a pod; none where they cannot be read: a pass can do without an explanation."""
        metadata = pod["metadata"]
        try:
            async with self._explained():
                return await self._kube.list(
                    CORE_EVENT, metadata["namespace"], field_selector=f"involvedObject.uid={metadata['uid']}"
                )
        except KubeError as error:
            logger.warning("no Events about pod %s: %s", metadata["name"], error)
            return ()

    async def workloads(self, pod: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
        """Kueue's Workloads for a pod. None where they cannot be read: a pass can do without an explanation."""
        metadata = pod["metadata"]
        try:
            async with self._explained():
                for kind in (WORKLOAD, FORMER_WORKLOAD):
                    with suppress(NotFound):
                        return await self._kube.list(kind, metadata["namespace"], **workload_selector(pod))
        except KubeError as error:
            logger.warning("no Workload of pod %s: %s", metadata["name"], error)
            return None
        return ()

    async def _pods_in(self, namespace: str) -> Sequence[Mapping[str, Any]] | None:
        """The whole pods of a namespace. None where they cannot be read: a pass can do without an explanation."""
        try:
            async with self._explained():
                return await self._kube.list(POD, namespace, cached=True)
        except KubeError as error:
            logger.warning("the pods of namespace %s are not known: %s", namespace, error)
            return None

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        """Few explanations are read at a time, and none is waited for long. Raises Unavailable where one is late."""
        try:
            async with asyncio.timeout(EXPLAINED_WITHIN_S), self._explanations.slot():
                yield
        except TimeoutError as error:
            raise Unavailable(0, "Timeout", f"not read within {EXPLAINED_WITHIN_S:g} s") from error

    async def record_events(self, observed: Observed, notes: Iterable[Condition], now: datetime) -> None:
        """Log what changed, and create Events for it."""
        for note in notes:
            logger.info("%s %s=%s %s: %s", observed.key, note.type, note.status, note.reason, note.message)
            await self._events.write(observed.key, event_of(observed, note, now, self._instance))

    def forget(self, key: Key) -> None:
        """Drop what is stored about a service that is gone."""
        self._refused.pop(key, None)
        self._claim_holders.forget(key)
        names = {*child_names(key).items(), (CONFIGMAP, config_name(key.name))}
        for kind, name in names:
            self._equal.pop((kind, key.namespace, name), None)

    def _same(self, manifest: Manifest, live: Mapping[str, Any] | None) -> bool:
        if live is None:
            return False
        applied = (live["metadata"].get("annotations") or {}).get(APPLIED_ANNOTATION)
        if applied != manifest["metadata"]["annotations"][APPLIED_ANNOTATION]:
            return False
        if holds(manifest, live) and not additions(manifest, live):
            return True
        return self._equal.get(_identity(manifest)) == (digest(manifest), content(live))

    async def _try(self, observed: Observed, manifest: Manifest) -> Obstacle | None:
        """A dry run; and a look at the live object, where there may be one that the cache does not know."""
        return await self._try_on(_live(observed, manifest), observed, manifest)

    async def _try_on(self, live: Mapping[str, Any] | None, observed: Observed, manifest: Manifest) -> Obstacle | None:
        refusal = None
        try:
            answer = await self._kube.apply(_against(manifest, live), manager=MANAGER, dry_run=True)
            exists = "resourceVersion" in answer["metadata"]  # an object that does not exist yet has none
            for trial in trial_deployments(manifest) if kind_of(manifest) == LEADERWORKERSET else ():
                await self._kube.apply(trial, manager=MANAGER, dry_run=True)
            if live is not None and kind_of(manifest) == LEADERWORKERSET and (kept := kept_size(manifest, live)):
                refusal = Obstacle("Forbidden", kept)
        except KubeError as error:
            refusal, exists = _refusal(kind_of(manifest), error), True
        if live is None and exists and (taken := await self._taken(observed, manifest)):
            return taken
        return refusal

    async def _taken(self, observed: Observed, manifest: Manifest) -> Obstacle | None:
        kind, metadata = kind_of(manifest), manifest["metadata"]
        live = await self._kube.get(kind, metadata["name"], metadata["namespace"])
        if live is None:
            return None
        if belonged_to_namesake(live, observed.document):
            what = f"{kind.kind} {metadata['name']} of the deleted LLMService {observed.key} is still being deleted"
            return Obstacle(LEFT_BEHIND, f"{what}: {await self._what_holds(observed.key, manifest)}")
        if belongs_to(live, observed.document):
            self._cache.put(kind, live)
            return None
        owner = controller_of(live)
        whose = f"{owner['kind']} {owner['name']} owns it" if owner else "no LLMService owns it"
        return Obstacle(
            NAME_TAKEN,
            f"{kind.kind} {metadata['name']} exists and {whose}; it is not touched: delete it, or give this LLMService "
            "another name",
        )

    async def _what_holds(self, key: Key, manifest: Manifest) -> str:
        """What an object waits for that is being deleted. A claim is kept for the pods that mount it, whoever's."""
        is_claim = kind_of(manifest) == PVC
        if is_claim and (holders := await self._claim_holders.of(key, manifest["metadata"]["name"])):
            named = and_more(holders, _PODS_NAMED, "pod")
            return f"it is mounted by {named}, and goes when nothing mounts it any more: wait, or delete what does"
        return "wait; if it stays, look at its finalizers"


def _refusal(kind: Kind, error: KubeError) -> Obstacle:
    """The obstacle, where the error is about the object itself; any other error is raised again."""
    if isinstance(error, Forbidden):
        return Obstacle("Forbidden", f"the API server forbids the {kind.kind}: {error}")
    if not (isinstance(error, Invalid) or _cannot_be_read(error)):
        raise error
    if kind in WORKLOAD_KINDS:
        return Obstacle("InvalidTemplate", f"the API server refuses the pod template: {error}")
    return Obstacle("Invalid", f"the API server refuses the {kind.kind}: {error}")


def _cannot_be_read(error: KubeError) -> bool:
    """A malformed value, such as a quantity: server-side apply answers 500 where other writes answer 400."""
    return error.status == 500 and "unable to convert unstructured object" in error.message


def equal_status(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True where both are equal, apart from empty values and from the order of lists that are maps by name."""
    one, other = _ordered(one), _ordered(other)
    return holds(one, other) and holds(other, one)


def _ordered(status: Mapping[str, Any]) -> dict[str, Any]:
    keys = {"conditions": "type", "placements": "pod"}
    return {
        name: sorted(value, key=lambda entry: str(entry[keys[name]])) if name in keys else value
        for name, value in status.items()
    }


def has_other_pods(observed: Observed, manifest: Manifest) -> bool:
    """Whether its pods are to be other than they are, or in another queue; False where only their number changes."""
    kind, live = kind_of(manifest), _live(observed, manifest)
    if kind not in WORKLOAD_KINDS:
        return False
    template = "leaderWorkerTemplate" if kind == LEADERWORKERSET else "template"
    if live is None or queue_labels(manifest) != queue_labels(live):
        return True
    return not holds(manifest["spec"][template], live["spec"][template])


def _is_forged(manifest: Manifest, live: Mapping[str, Any]) -> bool:
    """Whether the content of an object that nobody can change is not the one that it was written with."""
    if kind_of(manifest) == RESOURCECLAIMTEMPLATE:
        return not holds(manifest["spec"], live.get("spec"))
    return bool(manifest.get("immutable")) and live.get("data") != manifest["data"]


def _live(observed: Observed, manifest: Manifest) -> Mapping[str, Any] | None:
    return observed.child(kind_of(manifest), manifest["metadata"]["name"])


def _identity(manifest: Manifest) -> _Identity:
    return kind_of(manifest), manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def _against(manifest: Manifest, live: Mapping[str, Any] | None) -> Manifest:
    """The manifest with the live object's uid: if another object has taken the name, the write is a Conflict."""
    if live is None:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "uid": live["metadata"]["uid"]}}
