"""The certificate of the listener: `tls.crt` and `tls.key` of a mounted Secret, read again when they change."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from pathlib import Path

from uellm.errors import BadInput

CERTIFICATE, KEY = "tls.crt", "tls.key"
POLL_S = 10.0

LOG = logging.getLogger("uellm.gateway")


class Certificate:
    """A TLS context whose certificate can be renewed. Raises BadInput where the files cannot be used."""

    def __init__(self, directory: Path) -> None:
        self._files = directory / CERTIFICATE, directory / KEY
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._seen = self._versions()
        try:
            self._load()
        except OSError as error:
            message = f"{CERTIFICATE} and {KEY} there cannot be used ({error.strerror or error})"
            raise BadInput(str(directory), message) from error

    def renew(self) -> bool:
        """Load the files if they changed; whether a new certificate is in force for new connections."""
        versions = self._versions()
        if versions == self._seen:
            return False
        try:
            self._load()
        except OSError as error:
            LOG.error("the new certificate cannot be used and the old one stays in force: %s", error)
            return False
        self._seen = versions
        LOG.info("a new certificate is in force")
        return True

    async def watch(self) -> None:
        """Renew it until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self.renew()

    def _load(self) -> None:
        # A bad pair of files must not spoil the context in force.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
        self.context.load_cert_chain(*self._files)

    def _versions(self) -> tuple[tuple[int, int], ...]:
        try:
            return tuple((status.st_mtime_ns, status.st_ino) for status in map(os.stat, self._files))
        except OSError:
            return ()
