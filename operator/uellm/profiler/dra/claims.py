"""The claims that are prepared on this node, each a CDI file. The files alone are the driver's memory.

A file is written at once or not at all, so a driver that was killed finds a claim either prepared or not.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uellm.hardware import DRA_DRIVER, SIMULATED_DEVICES_VARIABLE
from uellm.planner.handover.device_facts import DeviceFacts
from uellm.profiler.deviceplugin import VISIBLE_DEVICES

CDI_DIRECTORY = "/var/run/cdi"
VENDOR = f"k8s.{DRA_DRIVER}"
KIND = f"{VENDOR}/claim"
_PREFIX, _SUFFIX = f"{VENDOR}-claim_", ".json"
_RECORD = "uellm.io/prepared"
_CDI_VERSION = "0.6.0"

logger = logging.getLogger(__name__)


class ClaimedDevice(NamedTuple):
    """A device of a claim: the request that it answers, and its name at that time."""

    request: str
    pool: str
    name: str
    uuid: str


class PreparedClaim(NamedTuple):
    """A claim with the devices that it got, in the order of its allocation."""

    uid: str
    namespace: str
    name: str
    devices: tuple[ClaimedDevice, ...]

    @property
    def cdi_id(self) -> str:
        """The name by which the container runtime finds the file."""
        return f"{KIND}={self.uid}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ClaimFiles:
    """The prepared claims in a directory of CDI files."""

    def __init__(self, directory: str | Path = CDI_DIRECTORY) -> None:
        self._directory = Path(directory)
        self._claims: dict[str, PreparedClaim] = {}
        for path in sorted(self._directory.glob(f".{_PREFIX}*")):
            path.unlink()  # half a file of a driver that was killed
        for path in sorted(self._directory.glob(f"{_PREFIX}*{_SUFFIX}")):
            claim = _read(path)
            if claim is not None:
                self._claims[claim.uid] = claim

    def get(self, uid: str) -> PreparedClaim | None:
        """The claim, if it is prepared."""
        return self._claims.get(uid)

    def all(self) -> tuple[PreparedClaim, ...]:
        """All of them."""
        return tuple(self._claims.values())

    def add(self, claim: PreparedClaim, facts: DeviceFacts) -> None:
        """Prepare a claim. Raises OSError."""
        path = self._path(claim.uid)
        unfinished = path.with_name(f".{path.name}")
        with unfinished.open("w") as file:
            json.dump(_document(claim, facts), file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        self._claims[claim.uid] = claim

    def remove(self, uid: str) -> bool:
        """Unprepare a claim; false if it was not prepared. Raises OSError."""
        self._path(uid).unlink(missing_ok=True)
        return self._claims.pop(uid, None) is not None

    def _path(self, uid: str) -> Path:
        return self._directory / f"{_PREFIX}{uid}{_SUFFIX}"


def _document(claim: PreparedClaim, facts: DeviceFacts) -> dict[str, Any]:
    visible = ",".join(device.uuid for device in claim.devices)
    env = [f"{VISIBLE_DEVICES}={visible}", f"{SIMULATED_DEVICES_VARIABLE}={facts.to_json()}"]
    record = {
        "namespace": claim.namespace,
        "name": claim.name,
        "devices": [device._asdict() for device in claim.devices],
    }
    return {
        "cdiVersion": _CDI_VERSION,
        "kind": KIND,
        "annotations": {_RECORD: json.dumps(record)},
        "devices": [{"name": claim.uid, "containerEdits": {"env": env}}],
    }


def _read(path: Path) -> PreparedClaim | None:
    try:
        document: Mapping[str, Any] = json.loads(path.read_text())
        record = json.loads(document["annotations"][_RECORD])
        devices: Sequence[Mapping[str, str]] = record["devices"]
        [device] = document["devices"]
        claimed = tuple(ClaimedDevice(**each) for each in devices)
        return PreparedClaim(device["name"], record["namespace"], record["name"], claimed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is none of this driver's files and is left alone: %s", path, error)
        return None
