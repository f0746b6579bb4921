"""`status.measured` and the condition PredictionsHold: measured step times beside what was predicted of them. Pure."""

from __future__ import annotations

from typing import Any

from uellm.reconcile.conditions import Condition
from uellm.reconcile.step_times.steps import LEAST_STEPS, MOST_SPREAD, ServiceSteps

TYPE = "PredictionsHold"
TOLERANCE = 0.15
"""Measured and predicted times may differ by this share."""

_LARGEST_PERCENT = 100_000


def measured_entry(measured: ServiceSteps) -> dict[str, Any]:
    """`status.measured`, rounded so that small changes do not show."""
    return {
        "steps": _first_digit(measured.steps),
        "tpotMicroseconds": _two_digits(measured.mean_s * 1e6),
        "predictedTpotMicroseconds": _two_digits(measured.expected_s * 1e6),
        "errorPercent": error_percent(measured),
        "prefillFactor": f"{measured.factors.prefill:.1f}",
        "decodeFactor": f"{measured.factors.decode:.1f}",
    }


def error_percent(measured: ServiceSteps) -> int:
    """The error in whole percent: of 10 and more in steps of 5."""
    percent = min(100.0 * measured.error, _LARGEST_PERCENT)
    return round(percent) if abs(percent) < 10 else 5 * round(percent / 5)


def predictions_hold(measured: ServiceSteps) -> Condition:
    """The condition PredictionsHold."""
    if not measured.enough:
        return Condition(TYPE, "Unknown", "FewSteps", f"fewer than {LEAST_STEPS} steps of the engine were measured")
    if measured.spread > MOST_SPREAD:
        message = (
            f"the pods' step times differ by more than {MOST_SPREAD - 1:.0%}, so they correct no prediction: compare "
            "their GPUs, and uellm_scheduler_decode_factor of each pod"
        )
        return Condition(TYPE, "Unknown", "PodsDiffer", message)
    took, expected = _milliseconds(measured.mean_s), _milliseconds(measured.expected_s)
    told = f"a step of the engine takes {took}, and {expected} was predicted for the same load"
    if abs(measured.error) <= TOLERANCE:
        return Condition(TYPE, "True", "AsPredicted", f"{told}: within {TOLERANCE:.0%}")
    after = "the pods keep their plan, and the next plan for this model on these GPUs is made with what was measured"
    return Condition(TYPE, "False", "MeasuredOtherwise", f"{told}; {after}")


def _milliseconds(seconds: float) -> str:
    return f"{float(f'{seconds * 1e3:.2g}'):g} ms"


def _two_digits(number: float) -> int:
    return max(1, round(float(f"{number:.2g}")))


def _first_digit(number: int) -> int:
    """Rounded down to one digit: it grows all the time."""
    unit: int = 10 ** (len(str(number)) - 1)
    return number // unit * unit
