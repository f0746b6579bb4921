"""Refuses an engine that is older than the flags of the plan, or that lacks a library which its model needs.

Of an unknown flag vLLM itself would only print its usage.

Which flags an engine knows is read from its sources. Importing vLLM for its parser would take ten seconds, and a table
of versions would be wrong for builds between releases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from uellm.errors import PlanError
from uellm.placement_report import ENGINE_TOO_OLD

# The flags that the planner and the launcher add. A user's own are the user's matter: vLLM names one it does not know.
ADDED_FLAGS = frozenset(
    {
        "--max-model-len",
        "--max-num-batched-tokens",
        "--max-num-seqs",
        "--kv-cache-memory-bytes",
        "--scheduling-policy",
        "--tensor-parallel-size",
        "--pipeline-parallel-size",
        "--shutdown-timeout",
        "--disable-access-log-for-endpoints",
        "--nnodes",
        "--node-rank",
        "--master-addr",
        "--master-port",
        "--headless",
        "--distributed-executor-backend",
    }
)
# Files of these names define vLLM's flags, by dataclass fields or by name.
_DEFINING = ("arg_utils.py", "cli_args.py")
_STREAMER = "runai_model_streamer"
_STREAMERS = {"s3": "runai_model_streamer_s3", "gs": "runai_model_streamer_gcs"}
TRIED = "0.32.0"
"""The version that this launcher was tried with."""


def check_engine(argv: Sequence[str], *, package: Path | None = None, version: str | None = None) -> None:
    """Raise PlanError EngineTooOld where the installed vLLM lacks a flag of the command line that is ours.

    `package`, `version`: vLLM's directory and version, for tests; else those of this interpreter. An engine whose
    sources cannot be read is not judged.
    """
    package = package or _package()
    if package is None:
        return
    unknown = unknown_flags((argument for argument in argv if argument in ADDED_FLAGS), package)
    if not unknown:
        return
    raise PlanError(
        ENGINE_TOO_OLD,
        f"vLLM {version or engine_version()} of the engine's image does not know {', '.join(unknown)}, which the plan "
        f"needs: set spec.engine.image to a newer one, such as vllm/vllm-openai:v{TRIED}",
    )


def check_streamer(model: str, *, is_there: Callable[[str], bool] | None = None) -> None:
    """Raise PlanError StreamerMissing where the engine lacks the libraries that load a model of an object store.

    vLLM loads them when they are first used, and names no object store in its error. `is_there`: for tests.
    """
    store = _STREAMERS.get(model.partition("://")[0])
    if store is None:
        return
    missing = [name for name in (_STREAMER, store) if not (is_there or _is_installed)(name)]
    if missing:
        raise PlanError(
            "StreamerMissing",
            f"the engine's image lacks {' and '.join(missing)}, by which vLLM loads {model}: use vLLM's own image, or "
            "install vllm[runai] in yours",
        )


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def unknown_flags(flags: Iterable[str], package: Path) -> list[str]:
    """Those flags that no defining file under `package` names; none where it has no such file."""
    texts = [path.read_text(errors="replace") for name in _DEFINING for path in package.rglob(name)]
    if not texts:
        return []
    return [flag for flag in dict.fromkeys(flags) if not any(_names(text, flag) for text in texts)]


def _names(text: str, flag: str) -> bool:
    field = flag.removeprefix("--").replace("-", "_")
    return flag in text or re.search(rf"\b{field}\b", text) is not None


def _package() -> Path | None:
    spec = find_spec("vllm")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def engine_version() -> str:
    """Of the vLLM that is installed for this interpreter."""
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return "of an unknown version"
