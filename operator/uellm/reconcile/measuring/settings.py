"""What the chart says about measuring pods, as the JSON of a variable of the operator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uellm.errors import BadInput

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class MeasuringSettings:
    """Where measuring pods run, and how."""

    namespace: str
    image: str
    """The engine's."""
    launcher_image: str
    """It holds the measuring program."""
    directory: str
    """Of the node: into which they write, and from which the profiler reads."""
    priority_class: str
    node_selector: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str = ""
    pull_secrets: Sequence[str] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    env: Sequence[Entry] = ()
    volumes: Sequence[Entry] = ()
    volume_mounts: Sequence[Entry] = ()

    @classmethod
    def from_json(cls, text: str, *, source: str, image: str, launcher_image: str) -> MeasuringSettings:
        """Read the variable `source`. `image`: the engine's, where it names none. Raises BadInput."""
        try:
            data = json.loads(text)
            return cls(
                namespace=data["namespace"],
                image=data.get("image") or image,
                launcher_image=launcher_image,
                directory=data["directory"],
                priority_class=data["priorityClassName"],
                node_selector=dict(data.get("nodeSelector") or {}),
                runtime_class=data.get("runtimeClassName") or "",
                pull_secrets=tuple(data.get("pullSecrets") or ()),
                resources=dict(data.get("resources") or {}),
                env=tuple(data.get("env") or ()),
                volumes=tuple(data.get("volumes") or ()),
                volume_mounts=tuple(data.get("volumeMounts") or ()),
            )
        except KeyError as error:
            raise BadInput(source, f"has no field {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise BadInput(source, f"is not what the chart writes: {error}") from error
