"""The settings of a running sidecar: one frozen value, replaced as a whole when the file or the API keys change.

The parts keep a `LiveSettings` and read its `current` value when they need it. No part holds a copy of a single
setting, so a reload cannot leave some parts with old settings and others with new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from uellm.api.running_report import RunningReport
from uellm.api.sidecar_document import EngineTask, SidecarAdapter, SidecarHttp
from uellm.errors import BadInput
from uellm.http import RequestLimits
from uellm.proxying.browsers import AllowedOrigins
from uellm.proxying.keys import Keys
from uellm.proxying.secrets import KeyDirectory
from uellm.sidecar.config import ConfigFile, SidecarConfig, load_engine
from uellm.sidecar.scheduling import Options, Targets
from uellm.step_time import StepFactors, StepTime


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the configuration file and the key directory decide."""

    model: str
    """The model's served name."""
    service: str
    """Namespace and name of the service; empty where there is no cluster."""
    classes: Mapping[str, Targets]
    """Every SLO class by name; the first is the default."""
    options: Options
    """Of the scheduler."""
    step_model: StepTime
    """Duration of the engine's steps until it is measured."""
    step_factors: StepFactors
    """By which earlier measurements differ from that."""
    steps_are_planned: bool
    """These step times are a prediction of this engine, which can be compared with what is measured."""
    max_num_seqs: int
    """Sequences that the engine runs at once."""
    max_num_batched_tokens: int | None
    """Tokens that the engine computes in one step; None: not known."""
    task: EngineTask
    """What the engine is started for."""
    accepts_priority: bool
    """The engine orders requests by `priority`."""
    adapters: tuple[SidecarAdapter, ...]
    """LoRA adapters that the engine is to serve; empty where it has no room for any."""
    loads_adapters: bool
    """It was started with room for them."""
    allowed_routes: tuple[str, ...]
    """Administrative routes of the engine that are served."""
    keys: Keys
    """API keys that are accepted."""
    predicts_lengths: bool
    """Output lengths are predicted."""
    http: SidecarHttp
    """Connections and bodies."""
    allowed_origins: AllowedOrigins
    """Whose pages may read the sidecar's own answers."""
    uses_learned_model: bool
    """The learned model is asked as well; implies `predicts_lengths`."""

    @classmethod
    def of(cls, config: SidecarConfig, keys: Keys) -> Settings:
        """The settings of a checked configuration."""
        predicts = config.scheduling.predictor == "Online"
        return cls(
            model=config.model,
            service=config.service,
            classes=config.targets(),
            options=config.options(),
            step_model=config.step_model(),
            step_factors=config.step_factors(),
            steps_are_planned=config.engine.step_seconds is not None,
            max_num_seqs=config.engine.max_num_seqs,
            max_num_batched_tokens=config.engine.max_num_batched_tokens,
            task=config.engine.task,
            accepts_priority=config.engine.accepts_priority,
            adapters=config.adapters if config.engine.loads_adapters else (),
            loads_adapters=config.engine.loads_adapters,
            allowed_routes=config.allowed_routes,
            keys=keys,
            predicts_lengths=predicts,
            http=config.http,
            allowed_origins=AllowedOrigins(frozenset(config.http.allowed_origins), config.http.allow_credentials),
            uses_learned_model=predicts and config.prediction.learned,
        )

    def limits(self, base: RequestLimits) -> RequestLimits:
        """`base` with what the configuration sets."""
        http, given = self.http, self.http.model_fields_set
        return replace(
            base,
            idle_s=http.idle_timeout_s if "idle_timeout" in given else base.idle_s,
            body_bytes=http.max_body_bytes if "max_body_bytes" in given else base.body_bytes,
            body_bytes_of=base.body_bytes_of | {route.path: route.max_body_bytes for route in http.routes},
        )


@dataclass(frozen=True, slots=True)
class Reload:
    """What a look at the file and the keys found. Nothing set: nothing changed."""

    config: bool = False
    """A new configuration is in force."""
    keys: bool = False
    """The key directory holds other keys than before; they are in force."""
    refused: BadInput | None = None
    """The file changed and is refused; the settings in force stay."""


class LiveSettings:
    """The settings in force, and how they follow the file and the key directory."""

    def __init__(self, path: Path, engine_path: Path | None = None) -> None:
        """Read the file, and the pod's own one where there is one. Raises BadInput."""
        pod = None if engine_path is None else load_engine(engine_path)
        self.revision = "" if pod is None else pod.revision
        self._file = ConfigFile(path, pod)
        self._directory = KeyDirectory(self._file.current.auth.keys_directory)
        self.current = Settings.of(self._file.current, self._directory.keys)

    @property
    def digest(self) -> str:
        """Digest of the file that is in force."""
        return self._file.digest

    def running(self) -> RunningReport:
        """What the sidecar runs with: the pod's revision, the file in force, and why a newer file is refused."""
        return RunningReport(self.revision, self.digest, "" if self.error is None else str(self.error))

    @property
    def error(self) -> BadInput | None:
        """Why the file as it is now is refused; None: it is in force."""
        return self._file.error

    def poll(self) -> Reload:
        """Look at the file and the keys, and replace `current` if one of them changed."""
        error_before = self._file.error
        config_changed, keys_changed = self._file.poll(), False
        path = self._file.current.auth.keys_directory
        if path != self._directory.path:
            self._directory = KeyDirectory(path)
        else:
            keys_changed = self._directory.poll()
        if config_changed or keys_changed:
            self.current = Settings.of(self._file.current, self._directory.keys)
        refused = self._file.error if self._file.error is not error_before else None
        return Reload(config_changed, keys_changed, refused)
