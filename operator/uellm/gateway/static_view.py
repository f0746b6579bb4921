"""Services and replicas from a file, for people and tests without a cluster.

services:
- name: llama                     # as in metadata.name; also the model's name, unless servedName says otherwise
  namespace: default              # the default
  servedName: llama-3.1-8b
  aliases: [fast]                 # further names that the engine answers to
  replicas: ["127.0.0.1:8000", "[::1]:8000"]
  metricsPort: 8002               # of the replicas' sidecars, if their loads are to be read
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from uellm.api.base import Model
from uellm.errors import BadInput
from uellm.gateway.catalog import Service, ServiceKey
from uellm.gateway.fleet import Fleet
from uellm.gateway.replicas import ReplicaAddress
from uellm.proxying.keys import Keys
from uellm.proxying.process import Address

Port = Annotated[int, Field(ge=1, le=65535)]


class StaticService(Model):
    """One service of the file."""

    name: str
    """Its name."""
    namespace: str = "default"
    """Its namespace."""
    served_name: str | None = None
    """The model's name in requests; `name` where not set."""
    aliases: tuple[str, ...] = ()
    """Further names that the engine answers to."""
    replicas: tuple[str, ...] = ()
    """Addresses of the sidecars: HOST:PORT."""
    metrics_port: Port | None = None
    """Their port for metrics."""


class StaticFile(Model):
    """The file."""

    services: tuple[StaticService, ...]
    """All services."""


class StaticView:
    """The services of a file; it is read once. Raises BadInput."""

    complete = True
    refused: Collection[str] = ()

    def __init__(self, path: Path, fleet: Fleet) -> None:
        for each in _read(path).services:
            key = ServiceKey(each.namespace, each.name)
            names = (each.served_name or each.name, *each.aliases)
            fleet.put(Service(key, names, replicas=len(each.replicas), fixed_names=True))
            addresses = [Address.parse(text, f"{path}: replicas of {key}") for text in each.replicas]
            fleet.place(key, [ReplicaAddress(a.host, a.port, each.metrics_port) for a in addresses])

    def age_s(self) -> float:
        """It is always up to date."""
        return 0.0

    async def run(self) -> None:
        """Nothing changes."""
        await asyncio.get_running_loop().create_future()

    async def want(self, service: Service) -> None:
        """Nobody can start a replica."""

    async def keys(self, service: Service) -> Keys | None:
        """The file has none."""
        return None


def _read(path: Path) -> StaticFile:
    try:
        return StaticFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInput(str(path), error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise BadInput(str(path), "is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise BadInput(str(path), "not YAML") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{path}: {where}", first["msg"]) from error
