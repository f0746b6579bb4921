"""The cluster of the end-to-end tests, for those that take longer."""

from e2e.conftest import installed, new_service, root

__all__ = ["installed", "new_service", "root"]
