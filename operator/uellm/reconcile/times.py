"""Times as the Kubernetes API writes them (RFC 3339)."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(text: str) -> datetime:
    """The time, in UTC. Raises ValueError."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def timestamp(moment: datetime) -> str:
    """To the second, as conditions carry it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
