"""Which API server, and with which credentials: a pod's service account, or a kubeconfig.

The package `kubernetes` is imported at the first connection, not with this module: the import takes most of a second,
and many commands never connect.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uellm.errors import BadInput, CannotBeDone

if TYPE_CHECKING:
    from kubernetes.aio.client import Configuration

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


async def load(kubeconfig: str | None = None, context: str | None = None) -> Configuration:
    """The configuration from the given file, else from the pod, else from KUBECONFIG or ~/.kube/config.

    `context`: a context of the file, in place of its current one.

    Raises BadInput where the file is not a kubeconfig, CannotBeDone where there is none.
    """
    from kubernetes.aio import config
    from kubernetes.aio.client import Configuration

    # Bypasses the constructor, which would copy a default that another library in this process may have set.
    configuration: Configuration = type.__call__(Configuration)
    if kubeconfig is None and context is None and in_cluster():
        try:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError) as error:
            raise CannotBeDone(f"the pod's service account cannot be used: {error}") from error
    else:
        await _load_file(configuration, kubeconfig, context)
    _without_proxy(configuration)
    return configuration


def authorities(configuration: Any) -> bytes:
    """The certificates of the cluster's authority that a configuration names, as they are now; empty: the system's."""
    if configuration.ssl_ca_cert is None:
        return b""
    try:
        return Path(configuration.ssl_ca_cert).read_bytes()
    except OSError:
        return b""


def namespace(kubeconfig: str | None = None, context: str | None = None) -> str:
    """The namespace of the context or the pod that `load` takes; empty where none is named. Raises as `load`."""
    if kubeconfig is None and context is None and in_cluster():
        try:
            return SERVICE_ACCOUNT_TOKEN.with_name("namespace").read_text(encoding="utf-8").strip()
        except OSError:
            return ""
    from kubernetes.aio.config.kube_config import KubeConfigMerger

    paths = _kubeconfig_paths(kubeconfig)
    try:
        found = KubeConfigMerger(paths).config  # type: ignore[no-untyped-call]
        named = found["contexts"].get_with_name(context or found.safe_get("current-context"), safe=True)
        return "" if named is None else str(named["context"].safe_get("namespace") or "")
    except _unusable() as error:
        raise _not_usable(paths, error) from error


def in_cluster() -> bool:
    """True in a pod with a service account."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and SERVICE_ACCOUNT_TOKEN.is_file()


async def _load_file(configuration: Any, kubeconfig: str | None, context: str | None) -> None:
    from kubernetes.aio import config

    paths = _kubeconfig_paths(kubeconfig)
    try:
        with _complaints() as complaints:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                paths, context=context, client_configuration=configuration, persist_config=False
            )
    except _unusable() as error:
        raise _not_usable(paths, error) from error
    if complaints and not configuration.api_key and not configuration.cert_file:
        why = _in_one_line("; ".join(complaints))
        raise CannotBeDone(
            f"{paths}: the exec plugin of its user gave no credentials ({why}): install it, or log in anew"
        )


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the package logs of an exec plugin that fails: it goes on without credentials, and raises nothing."""
    found: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            found.append(record.getMessage())
        return record.levelno < logging.ERROR

    logger = logging.getLogger("kubernetes.aio.config.kube_config")
    logger.addFilter(take)
    try:
        yield found
    finally:
        logger.removeFilter(take)


def _not_usable(paths: str, error: Exception) -> BadInput:
    return BadInput(paths, f"not a kubeconfig that can be used ({_in_one_line(str(error))})")


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _unusable() -> tuple[type[Exception], ...]:
    """What the package raises for a file that is no kubeconfig."""
    import yaml
    from kubernetes.aio.config import ConfigException

    return ConfigException, yaml.YAMLError, KeyError, TypeError, AttributeError, OSError, UnicodeDecodeError


def _kubeconfig_paths(kubeconfig: str | None) -> str:
    paths = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path):
        where = "given" if kubeconfig else "neither a pod's service account nor a kubeconfig found"
        raise CannotBeDone(f"no cluster to talk to ({where}: {paths}): set KUBECONFIG to the file of your cluster")
    return paths


def _without_proxy(configuration: Any) -> None:
    # A proxy of the environment is for the outside world, and the API server is inside. A proxy-url in the kubeconfig
    # is still used.
    configuration.client_session_kwargs = {"trust_env": False}
