"""The few requests to the API server that starting a cluster needs; standard library only."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

from uellm_devcluster.errors import ClusterError

_TIMEOUT_S = 10.0


class Api:
    """A client of the API server that a kubeconfig names. It authenticates with a client certificate."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        address = urlsplit(cluster["server"])
        self._host, self._port = address.hostname or "", address.port or 443
        self._context = ssl.create_default_context(
            cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
        )
        # The ssl module reads client certificates only from files.
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(base64.b64decode(user["client-certificate-data"]))
            pem.write(base64.b64decode(user["client-key-data"]))
            pem.flush()
            self._context.load_cert_chain(pem.name)

    def ready(self) -> bool:
        """Whether the API server answers and reports that it is ready."""
        try:
            status, _ = self._request("GET", "/readyz")
        except (OSError, http.client.HTTPException):
            return False
        return status == http.client.OK

    def list(self, path: str) -> list[dict[str, Any]]:
        """The items of a list such as `/api/v1/nodes`."""
        return cast("list[dict[str, Any]]", self._expect("GET", path, None, {200})["items"])

    def create(self, path: str, document: dict[str, Any]) -> None:
        """Create an object. An existing one is left unchanged."""
        self._expect("POST", path, document, {200, 201, 409})

    def _expect(self, method: str, path: str, document: dict[str, Any] | None, statuses: set[int]) -> dict[str, Any]:
        try:
            status, body = self._request(method, path, document)
        except (OSError, http.client.HTTPException) as error:
            raise ClusterError(f"the API server at {self._host}:{self._port} does not answer: {error}") from error
        if status not in statuses:
            raise ClusterError(f"{method} {path}: the API server says {status}: {body[:300].decode(errors='replace')}")
        return cast("dict[str, Any]", json.loads(body))

    def _request(self, method: str, path: str, document: dict[str, Any] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=_TIMEOUT_S)
        try:
            body = None if document is None else json.dumps(document)
            connection.request(method, path, body, {"Content-Type": "application/json", "Accept": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def unready_nodes(nodes: list[dict[str, Any]]) -> list[str]:
    """Names of the nodes whose Ready condition is not True."""
    return [node["metadata"]["name"] for node in nodes if not node_is_ready(node)]


def node_is_ready(node: dict[str, Any]) -> bool:
    """Whether a Node's Ready condition is True."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
