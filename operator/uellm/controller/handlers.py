"""The kopf part: watches on every kind, whose events go to the Watcher. kopf itself stores and writes nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import kopf

from uellm.api.names import GROUP
from uellm.controller.resync import label_selector
from uellm.controller.watcher import Watcher
from uellm.kube import Kind


def registry(watcher: Watcher, kinds: Iterable[Kind]) -> kopf.OperatorRegistry:
    """Handlers for these kinds, and a login that needs no further library."""
    handlers = kopf.OperatorRegistry()
    kopf.on.login(id="pod", registry=handlers)(_login_in_pod)
    kopf.on.login(id="kubeconfig", registry=handlers)(kopf.login_with_kubeconfig)
    for kind in kinds:
        _watch(handlers, kind, watcher)
    return handlers


def _login_in_pod(**arguments: Any) -> kopf.ConnectionInfo | None:
    """The pod's service account, at the API server's address from the environment.

    kopf's own login uses a host name instead, and an operator must not depend on the cluster's DNS.
    """
    found = kopf.login_with_service_account(**arguments)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if found is None or not host:
        return found
    return dataclasses.replace(found, server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")


def _watch(handlers: kopf.OperatorRegistry, kind: Kind, watcher: Watcher) -> None:
    def handle(event: Any, **_: Any) -> None:
        watcher.on_event(kind, event["type"], event["object"])

    kopf.on.event(*_resource(kind), id=kind.plural, registry=handlers)(_on_the_loop(handle))


def _on_the_loop(function: Any) -> Any:
    async def handler(**arguments: Any) -> None:
        # kopf runs plain functions in threads, and the cache and the queue belong to the event loop.
        function(**arguments)

    return handler


def _resource(kind: Kind) -> tuple[str, str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version, kind.plural


class _NoEssence(kopf.DiffBaseStorage):
    """Stores nothing: kopf would copy every object of every event, which took half of the CPU time."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return


def settings(kinds: Iterable[Kind]) -> kopf.OperatorSettings:
    """kopf's settings: quiet, bounded in time, and without any trace on objects."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.persistence.finalizer = f"{GROUP}/unused"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    chosen.persistence.diffbase_storage = _NoEssence()
    chosen.networking.request_timeout = 60
    chosen.networking.connect_timeout = 10
    chosen.watching.inactivity_timeout = 70
    # The kinds are known; to watch CRDs and namespaces besides would ask for more rights.
    chosen.scanning.disabled = True
    chosen.process.ultimate_exiting_timeout = 8
    for kind in kinds:
        if selector := label_selector(kind):
            chosen.watching.label_selectors[_resource(kind)] = selector
    return chosen
