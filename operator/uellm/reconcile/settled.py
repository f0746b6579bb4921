"""Services of which a full pass found nothing to do, so that the next pass need not look again. Pure.

Only a service that serves as it is asked to can be settled: while a pod is not ready, time alone changes what is to be
done.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.records import Planned
from uellm.reconcile.pods.pod_state import is_ready
from uellm.reconcile.pods.running import WantedConfig
from uellm.reconcile.stored import Object, identity_of

LONGEST = timedelta(minutes=10)
"""A settled service gets a full pass this often."""


@dataclass(frozen=True)
class SettledPass:
    """What a full pass worked on, and until when its result holds."""

    observed: Observed
    planned: Planned
    wanted: WantedConfig | None
    until: datetime


class SettledPasses:
    """The last full pass of each settled service."""

    def __init__(self) -> None:
        self._passes: dict[Key, SettledPass] = {}

    def put(self, last: SettledPass) -> None:
        """Remember a full pass. If it wrote something, the next pass observes what was written, and is a full one."""
        if _serves(last.observed):
            self._passes[last.observed.key] = replace(last, observed=_by_version(last.observed))
        else:
            self.forget(last.observed.key)

    def of(self, observed: Observed, planned: Planned, now: datetime) -> SettledPass | None:
        """The last full pass, if a pass over this state would do nothing now. `observed.running` is not compared."""
        last = self._passes.get(observed.key)
        if last is None or now >= last.until or last.planned.choice is not planned.choice:
            return None
        same = last.planned.rendered is planned.rendered and last.observed == replace(
            _by_version(observed), running=last.observed.running
        )
        return last if same else None

    def forget(self, key: Key) -> None:
        """The service is gone, or is not settled."""
        self._passes.pop(key, None)


def holds_until(now: datetime, recheck_s: float | None) -> datetime:
    """When the result of a pass at `now` ends that is due again in `recheck_s`."""
    return now + (LONGEST if recheck_s is None else min(LONGEST, timedelta(seconds=recheck_s)))


def _by_version(observed: Observed) -> Observed:
    """The same with a digest of the versions in place of a service and its children, which take much memory."""
    children = {kind.plural: each for kind, each in observed.children.items()}
    groups = (children, observed.configmaps, observed.claim_templates)
    versions = [[(name, _version_of(group[name])) for name in sorted(group)] for group in groups]
    text = msgspec.json.encode((_version_of(observed.document), versions))
    digest = hashlib.blake2b(text, digest_size=16).hexdigest()
    return replace(
        observed,
        document={"digest": digest},
        service=None,  # follows from the document, as does `invalid`
        invalid="",
        children={},
        configmaps={},
        claim_templates={},
    )


def _version_of(obj: Object) -> Any:
    uid, version = identity_of(obj)
    return obj if version is None else (uid, version)


def _serves(observed: Observed) -> bool:
    return len(observed.engines) == observed.replicas and all(map(is_ready, observed.pods))
