"""A service's calibration: the annotation `uellm.io/efficiency` on the LLMService.

Its value is the `efficiency` object of the file that `uellm calibrate` writes. It is an annotation and not a field of
the spec, because it does not change what the user asks for: it makes predictions more accurate.
"""

from __future__ import annotations

import json

from uellm.api.llmservice import LLMService
from uellm.api.names import EFFICIENCY_ANNOTATION
from uellm.errors import BadInput, PlanError
from uellm.planner.efficiency import Efficiency


def efficiency_of(service: LLMService) -> Efficiency:
    """The service's calibration, or the defaults. Raises PlanError InvalidOverride."""
    text = (service.metadata.get("annotations") or {}).get(EFFICIENCY_ANNOTATION)
    if text is None:
        return Efficiency()
    where = f"metadata.annotations[{EFFICIENCY_ANNOTATION}]"
    try:
        return Efficiency.from_dict(json.loads(text), where)
    except (ValueError, TypeError) as error:
        raise PlanError("InvalidOverride", f"{where}: is not JSON: {error}") from error
    except BadInput as error:
        raise PlanError("InvalidOverride", str(error)) from error
