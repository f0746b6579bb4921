"""`Kube`: get, list, create, server-side apply, delete, bind and watch, with plain dictionaries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any

from uellm.kube.errors import Conflict, Forbidden, NotFound
from uellm.kube.fence import WritableFor, always
from uellm.kube.kinds import POD, Kind, kind_of
from uellm.kube.transport import Observe, Transport, unobserved
from uellm.kube.watch import SESSION_S, SILENCE_S, Event, Watch, lean, list_all

APPLY = "application/apply-patch+yaml"  # JSON is YAML
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"


class Kube:
    """A connection to one cluster; an async context manager. Every method raises KubeError.

    Objects come without managedFields, but for `WITH_MANAGED_FIELDS`. Writes are strict: a field that the server does
    not know is an error, and is not dropped silently.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        writable_for: WritableFor = always,
        observe: Observe = unobserved,
    ) -> Kube:
        """Read the credentials from the file, else from the pod, else from KUBECONFIG. Sends nothing yet.

        `writable_for`: seconds for which this process may write from now on; without, it always may. `observe` is
        called after every request.
        """
        return cls(await Transport.open(kubeconfig, context, writable_for, observe))

    async def close(self) -> None:
        """Close every connection; watches end."""
        await self._transport.close()

    async def __aenter__(self) -> Kube:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def host(self) -> str:
        """The API server's address."""
        return self._transport.host

    async def version(self) -> str:
        """The API server's version, such as `v1.36.3`. The cheapest request that proves that it answers."""
        return str((await self._transport.call("GET", "/version"))["gitVersion"])

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        """One object, or None where there is none."""
        try:
            return lean(await self._transport.call("GET", kind.path(namespace=namespace, name=name)))
        except NotFound:
            return None

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        cached: bool = False,
    ) -> list[dict[str, Any]]:
        """All objects of a kind, of one namespace or of all.

        `cached`: as the API server remembers them, a little late perhaps, without a read from its database.
        """
        query = _selectors(label_selector, field_selector) | ({"resourceVersion": "0"} if cached else {})
        objects, _ = await list_all(self._transport, kind.path(namespace=namespace), query)
        return objects

    async def create(self, obj: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Create an object. Raises AlreadyExists."""
        path = kind_of(obj).path(namespace=obj["metadata"].get("namespace"))
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return lean(await self._transport.call("POST", path, query=query, body=obj))

    async def apply(
        self, obj: Mapping[str, Any], *, manager: str, force: bool = True, dry_run: bool = False
    ) -> dict[str, Any]:
        """Server-side apply: set these fields, and remove others that `manager` applied before.

        With `metadata.resourceVersion` it is a compare-and-swap: Conflict where someone wrote in between.
        """
        return await self._apply(obj, "", manager, force, dry_run)

    async def apply_status(self, obj: Mapping[str, Any], *, manager: str) -> dict[str, Any]:
        """Server-side apply of the status subresource; the object must exist. Raises NotFound."""
        return await self._apply(obj, "status", manager, True, False)

    async def annotate(
        self, kind: Kind, name: str, namespace: str | None, annotations: Mapping[str, str | None], *, uid: str
    ) -> bool:
        """Set annotations of an object, and remove those that are None. False where no such object of this uid exists.

        Server-side apply could not remove what another manager has set.
        """
        body = {"metadata": {"uid": uid, "annotations": dict(annotations)}}
        path = kind.path(namespace=namespace, name=name)
        try:
            await self._transport.call("PATCH", path, body=body, content_type=MERGE)
        except (NotFound, Conflict):
            return False
        return True

    async def remove_fields(
        self, obj: Mapping[str, Any], paths: Iterable[tuple[str | int, ...]], *, manager: str
    ) -> dict[str, Any]:
        """Remove fields of an object, whoever has set them. Raises Conflict where it has changed since it was read."""
        metadata = obj["metadata"]
        # A place in a list means something only in the version that it was found in.
        body = [{"op": "replace", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}]
        body += [{"op": "remove", "path": "".join(f"/{_escaped(step)}" for step in path)} for path in paths]
        path = kind_of(obj).path(namespace=metadata.get("namespace"), name=metadata["name"])
        query = {"fieldManager": manager, "fieldValidation": "Strict"}
        return lean(await self._transport.call("PATCH", path, query=query, body=body, content_type=JSON_PATCH))

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace_s: int | None = None,
    ) -> bool:
        """Delete an object and, in the background, what it owns. False where no such object (of this uid) exists.

        `grace_s`: a pod's grace period instead of its own; 0 does not wait for its kubelet.
        """
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._transport.call("DELETE", kind.path(namespace=namespace, name=name), body=body)
        except NotFound:
            return False
        except Conflict:
            if uid is None:
                raise
            return False  # another object has taken the name
        return True

    async def bind(self, pod: str, namespace: str, uid: str, node: str) -> None:
        """Bind a pod to a node, as a scheduler does. Raises Conflict where it is already bound or was replaced."""
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod, "namespace": namespace, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        path = POD.path(namespace=namespace, name=pod, subresource="binding")
        await self._transport.call("POST", path, body=body)

    def watch(
        self,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        session_s: float = SESSION_S,
        silence_s: float = SILENCE_S,
        on_contact: Callable[[], None] | None = None,
        optional: bool = False,
        forbidden_s: float | None = None,
        on_refused: Callable[[Forbidden | NotFound], bool] | None = None,
    ) -> AsyncGenerator[Event]:
        """All objects as ADDED, then SYNCED, then every change, for ever; see `uellm.kube.watch`.

        `optional`: raises NotFound where the kind is not installed, and Forbidden where it may not be read.
        `forbidden_s`: raises Forbidden where it was forbidden for so long and has never worked.
        `on_refused`: called at every NotFound or Forbidden that is retried; nothing is logged of them then. Where it
        returns True, everything known is yielded as DELETED.
        `on_contact` is called whenever something was received: at least every `session_s` while the server works.
        """
        watch = Watch(
            self._transport,
            kind.path(namespace=namespace),
            _selectors(label_selector, field_selector),
            session_s=session_s,
            silence_s=silence_s,
            on_contact=on_contact,
            optional=optional,
            forbidden_s=forbidden_s,
            on_refused=on_refused,
        )
        return watch.events()

    async def _apply(
        self, obj: Mapping[str, Any], subresource: str, manager: str, force: bool, dry_run: bool
    ) -> dict[str, Any]:
        metadata = obj["metadata"]
        path = kind_of(obj).path(namespace=metadata.get("namespace"), name=metadata["name"], subresource=subresource)
        query = {"fieldManager": manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        return lean(await self._transport.call("PATCH", path, query=query, body=obj, content_type=APPLY))


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    query = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in query.items() if value}


def _escaped(step: str | int) -> str:
    """A step of a JSON pointer (RFC 6901)."""
    return str(step).replace("~", "~0").replace("/", "~1")
