"""The three kinds of reports that the operator collects from running pods, as one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from uellm.reconcile.pods.measurements import Measurements
from uellm.reconcile.pods.placement_reports import PlacementReports
from uellm.reconcile.pods.running import RunningReports
from uellm.reconcile.pods.sidecar_client import SidecarClient


class Collectors(NamedTuple):
    """What running pods report."""

    placements: PlacementReports
    measurements: Measurements
    running: RunningReports

    @classmethod
    def of(cls, sidecars: SidecarClient, clock: Callable[[], float]) -> Collectors:
        """Collectors that ask the sidecars."""
        return cls(
            PlacementReports(sidecars.placement, clock),
            Measurements(sidecars.measurements, clock),
            RunningReports(sidecars.running, clock),
        )

    def keep(self, uids: set[str]) -> None:
        """Drop the reports of all pods but these."""
        self.placements.keep(uids)
        self.measurements.keep(uids)
        self.running.keep(uids)
