"""The step times that a service's pods report, taken together, and whether later plans may use them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean, median
from typing import Any, NamedTuple

from uellm.api.attainment_report import StepMeasurement
from uellm.hardware import Device
from uellm.planner.correction import is_alike
from uellm.reconcile.children.revision import Revision
from uellm.reconcile.names import revision_label, uid_of
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.engine_readiness import living
from uellm.step_basis import Correction, StepBasis
from uellm.step_time import StepFactors

LEAST_STEPS = 200
"""Steps of a pod that are enough to judge by: as many as count in its means."""
MOST_SPREAD = 1.25
"""Pods whose factors differ by more than this do not measure the same thing."""


class ServiceSteps(NamedTuple):
    """What the pods of the revision in force measured."""

    steps: int
    """Of all pods."""
    enough: bool
    """At least one pod measured LEAST_STEPS. The figures are of those that did, else of all."""
    mean_s: float
    expected_s: float
    """What was predicted of the same steps."""
    factors: StepFactors
    """The median of the pods' factors, on the prediction without any correction."""
    spread: float
    """The largest factor of a pod over the smallest, for steps without prompts."""

    @property
    def error(self) -> float:
        """Measured over predicted, less 1."""
        return self.mean_s / self.expected_s - 1.0


def service_steps(observed: Observed) -> ServiceSteps | None:
    """The measurements of a service; None where its pods report none."""
    found = list(_of_revision(observed).values())
    return _together(found) if found else None


def correction(observed: Observed) -> Correction | None:
    """What later plans may use: measured on healthy GPUs of the kind that was planned on, by pods that agree."""
    revision = observed.revision
    basis = None if revision is None else revision.step_basis
    if basis is None:
        return None
    reports = _reports(observed, revision)
    homes = {pod["spec"].get("nodeName") for pod, measured in reports.values() if measured.observed >= LEAST_STEPS}
    devices = {
        node.facts.name: {device.uuid: device for device in node.facts.devices}
        for node in observed.nodes
        if node.facts.name in homes
    }
    sound = []
    for uid, (pod, measured) in reports.items():
        report = observed.reports.get(uid)
        known = devices.get(pod["spec"].get("nodeName") or "", {})
        if report is not None and measured.observed >= LEAST_STEPS and _are_sound(report.uuids, known, basis):
            sound.append(measured)
    if not sound:
        return None
    together = _together(sound)
    return Correction(basis, together.factors, together.steps) if together.spread <= MOST_SPREAD else None


def _are_sound(uuids: Iterable[str], known: Mapping[str, Device], basis: StepBasis) -> bool:
    devices = [known.get(uuid) for uuid in uuids]
    found = [device for device in devices if device is not None and device.usable]
    return len(found) == len(devices) == basis.tensor * basis.pipeline and is_alike(found, basis)


def _of_revision(observed: Observed) -> dict[str, StepMeasurement]:
    revision = observed.revision
    if revision is None:
        return {}
    return {uid: measured for uid, (_, measured) in _reports(observed, revision).items()}


def _reports(observed: Observed, revision: Revision | None) -> dict[str, tuple[Mapping[str, Any], StepMeasurement]]:
    """The reports of living pods of this revision, by uid."""
    return {
        uid: (pod, observed.step_times[uid])
        for pod in living(observed.pods)
        if revision is not None and revision_label(pod) == revision.name
        if (uid := uid_of(pod)) in observed.step_times
    }


def _together(found: list[StepMeasurement]) -> ServiceSteps:
    ample = [each for each in found if each.observed >= LEAST_STEPS]
    counted = ample or found
    decode = [each.factors.decode for each in counted]
    return ServiceSteps(
        sum(each.observed for each in found),
        bool(ample),
        fmean(each.mean_s for each in counted),
        fmean(each.expected_s for each in counted),
        StepFactors(median(each.factors.prefill for each in counted), median(decode)),
        max(decode) / min(decode),
    )
