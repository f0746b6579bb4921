"""Simulated GPUs as a source: a GPUNodeProfile document, or only its status, instead of real GPUs.

The profile follows changes of the file (or its ConfigMap): every sample checks whether it changed. Beside the devices
it may say how their device plugin names them:

    devicePlugin:
      names: GKE       # UUID | Index | GKE | HAMi | Opaque
      replicas: 4      # by time-slicing or MPS: to how many pods a device is lent at once
      renamed: true    # the resource is then `nvidia.com/gpu.shared`
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from uellm.api import parse, read_documents
from uellm.api.base import Model
from uellm.api.gpunodeprofile import GPUNodeProfileStatus
from uellm.errors import BadInput
from uellm.profiler.plugin_names import DevicePluginNames, Scheme, device_file
from uellm.profiler.sample import SIMULATED, NoGPUs, Sample, Source

_PLUGIN = "devicePlugin"
"""Field of a description that no profile has."""
MAX_DEVICE_ID = 63
"""Longest id of a device that the kubelet's device-plugin API allows."""


class DevicePluginEntry(Model):
    """`devicePlugin` of a description."""

    names: Scheme = "UUID"
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    renamed: bool = False

    def read(self) -> DevicePluginNames:
        """What the device plugin calls its devices."""
        return DevicePluginNames(self.names, self.replicas, self.renamed)


def described_name(path: str | Path) -> str:
    """The node name in a file with one document; empty if it has none. Raises BadInput."""
    documents = read_documents(path)
    return _name(documents[0]) if len(documents) == 1 else ""


class SimulatedSource:
    """Samples of a described node: `path` is a file, or a directory of `<node>.yaml` files.

    `otherwise` is the source of a node that the directory does not name.
    """

    def __init__(self, path: str | Path, node: str, *, otherwise: Source | None = None) -> None:
        self._path = Path(path)
        self._node = node
        self._otherwise = otherwise
        self._read: tuple[tuple[int, ...], Sample] | None = None

    @property
    def file(self) -> Path:
        """The file that describes the node; it may not exist."""
        return self._path / f"{self._node}.yaml" if self._path.is_dir() else self._path

    @property
    def described(self) -> bool:
        """False if a directory has no file for the node. A missing file that was named itself is an error instead."""
        return self.file.is_file() or not self._path.is_dir()

    def sample(self) -> Sample:
        """Read the description. Raises BadInput with the field, NoGPUs where the directory has none for the node."""
        if not self.described:
            if self._otherwise is not None:
                return self._otherwise.sample()
            raise NoGPUs("NotDescribed", f"{self._path} describes no node {self._node!r}: add {self._node}.yaml")
        version = _version(self.file)
        if self._read is None or self._read[0] != version:
            self._read = version, self._parse()
        return self._read[1]

    def _parse(self) -> Sample:
        document = self._status()
        status = _parsed(str(self.file), document)
        at = f"{self.file}: status.{_PLUGIN}"
        plugin_names = parse(DevicePluginEntry, document.get(_PLUGIN) or {}, at=at).read()
        to_measure = status.measurement is not None and status.measurement.on == "CPU"
        described = _without_rates(status) if to_measure else status
        devices = tuple(_entries(described))
        return Sample(
            source=SIMULATED,
            measured_on="CPU" if to_measure else "",
            devices=devices,
            links=tuple(link.to_dict() for link in described.links),
            driver_version=status.driver_version or "",
            cuda_version=status.cuda_version or "",
            aliases={device_file(device): (device["uuid"],) for device in devices if device.get("mig")},
            plugin_names=plugin_names,
        )

    def _status(self) -> Any:
        documents = read_documents(self.file)
        named = [document for document in documents if _name(document) == self._node]
        chosen = named if len(documents) > 1 else documents
        if len(chosen) != 1:
            raise BadInput(str(self.file), f"must hold one description of node {self._node!r}; it holds {len(chosen)}")
        [document] = chosen
        if "kind" not in document:
            return document
        if document["kind"] != "GPUNodeProfile":
            raise BadInput(f"{self.file}: kind", f"must be GPUNodeProfile, not {document['kind']!r}")
        return document.get("status") or {}


def _version(file: Path) -> tuple[int, ...]:
    try:
        stat = file.stat()
    except OSError as error:
        raise BadInput(str(file), f"cannot be read: {error}") from error
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _name(document: dict[str, Any]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""


def _parsed(file: str, document: Any) -> GPUNodeProfileStatus:
    at = f"{file}: status"
    status = parse(GPUNodeProfileStatus, document, at=at)
    if not status.devices:
        raise BadInput(f"{at}.devices", "must list at least one device")
    uuids = [device.uuid for device in status.devices]
    for index, uuid in enumerate(uuids):
        if len(uuid) > MAX_DEVICE_ID:
            raise BadInput(f"{at}.devices[{index}].uuid", f"has {len(uuid)} characters; {MAX_DEVICE_ID} are allowed")
    for index, link in enumerate(status.links):
        for end, uuid in (("a", link.a), ("b", link.b)):
            if uuid not in uuids:
                raise BadInput(f"{at}.links[{index}].{end}", f"{uuid!r} is not one of the devices")
    return status


def _without_rates(status: GPUNodeProfileStatus) -> GPUNodeProfileStatus:
    """The description whose rates are to be measured."""
    devices = tuple(device.model_copy(update={"measured": None}) for device in status.devices)
    unknown = {"bytes_per_second": None, "latency_nanoseconds": None}
    links = tuple(link.model_copy(update=unknown) for link in status.links)
    return status.model_copy(update={"devices": devices, "links": links})


def _entries(status: GPUNodeProfileStatus) -> Iterator[dict[str, Any]]:
    for position, device in enumerate(status.devices):
        # Allocations come from the kubelet, here as on a real node.
        entry = {name: value for name, value in device.to_dict().items() if name != "allocatedTo"}
        if "index" not in device.model_fields_set:
            entry["index"] = position
        yield entry
