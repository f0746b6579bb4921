"""What to say of a right that the operator lacks."""

from __future__ import annotations

import re

from uellm.errors import CannotBeDone
from uellm.kube import Forbidden, Kind

_VERB = re.compile(r"cannot (list|watch) resource")


def lacking(kind: Kind, error: Forbidden) -> CannotBeDone:
    """Which right the operator lacks, and who can give it."""
    found = _VERB.search(error.message)
    verb = found[1] if found else "list and watch"
    group = kind.api_version.rpartition("/")[0]
    return CannotBeDone(
        f"the operator may not {verb} {kind.plural}{f'.{group}' if group else ''} in the whole cluster: add the verbs "
        f"list and watch to the ClusterRole of its ServiceAccount, in the chart RELEASE-operator, or upgrade it: "
        f"{error}"
    )
