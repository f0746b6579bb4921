"""The API's scalars and their values: durations, quantities, names.

The Kubernetes API avoids floats. A rate is a quantity ("4", "500m"), and a time is a duration as in the Gateway API
(GEP-2257: "500ms", "1h30m").
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from uellm.api.base import ValidationRule
from uellm.errors import BadInput

DURATION = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
RATE = r"^[0-9]{1,9}(\.[0-9]{1,3})?[mk]?$"
PERCENT = r"^(100(\.0{1,3})?|[0-9]{1,2}(\.[0-9]{1,3})?)%$"
QUANTITY = r"^[0-9]{1,18}(\.[0-9]{1,9})?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
UUID = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"

_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_SUFFIX = {"": 0, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50}


def duration_s(text: str) -> float:
    """Seconds of a duration such as `1h30m`. Raises BadInput.

    >>> duration_s("1m500ms")
    60.5
    """
    if not re.fullmatch(DURATION, text):
        raise BadInput("", f"{text!r} is not a duration: write for example 500ms, 2s or 1h30m")
    parts = re.findall(r"([0-9]+)(ms|h|m|s)", text)
    return sum(int(number) * _UNIT_S[unit] for number, unit in parts)


def quantity(text: str) -> Decimal:
    """The exact value of a Kubernetes quantity. Raises BadInput.

    >>> quantity("500m"), quantity("2Gi")
    (Decimal('0.500'), Decimal('2147483648'))
    """
    match = re.fullmatch(QUANTITY, text)
    if match is None:
        raise BadInput("", f"{text!r} is not a quantity: write for example 4, 500m or 16Gi")
    suffix = match.group(2) or ""
    number = Decimal(text.removesuffix(suffix))
    return number * 2 ** _BINARY[suffix] if suffix in _BINARY else number.scaleb(_SUFFIX[suffix])


def share(percent: str) -> float:
    """The share for a percentage such as `99.5%`. Raises BadInput.

    >>> share("99.5%")
    0.995
    """
    if not re.fullmatch(PERCENT, percent):
        raise BadInput("", f"{percent!r} is not a percentage: write for example 99% or 99.5%")
    return float(Decimal(percent[:-1]) / 100)


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _int_or_string(pattern: str, max_length: int) -> WithJsonSchema:
    # YAML parses an unquoted 4 as a number; Kubernetes accepts both forms of a quantity everywhere.
    return WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": pattern, "maxLength": max_length})


Duration = Annotated[
    str,
    StringConstraints(pattern=DURATION, max_length=28),
    ValidationRule(
        cel="duration(self) > duration('0s')",
        holds=lambda text: duration_s(text) > 0,
        message="must be longer than 0s",
    ),
]
Rate = Annotated[
    str,
    BeforeValidator(_number_as_text),
    StringConstraints(pattern=RATE, max_length=14),
    _int_or_string(RATE, 14),
    ValidationRule(
        cel="type(self) == int ? self > 0 : quantity(string(self)).isGreaterThan(quantity('0'))",
        holds=lambda text: quantity(text) > 0,
        message="must be more than 0",
    ),
]
Quantity = Annotated[
    str,
    BeforeValidator(_number_as_text),
    StringConstraints(pattern=QUANTITY, max_length=31),
    _int_or_string(QUANTITY, 31),
]
Percent = Annotated[str, StringConstraints(pattern=PERCENT, max_length=8)]
DnsLabel = Annotated[str, StringConstraints(pattern=DNS_LABEL, max_length=63)]
DnsSubdomain = Annotated[str, StringConstraints(pattern=DNS_SUBDOMAIN, max_length=253)]
DeviceUuid = Annotated[str, StringConstraints(pattern=UUID, max_length=128)]
Text = Annotated[str, StringConstraints(max_length=256)]
Sentence = Annotated[str, StringConstraints(max_length=1024)]
Timestamp = Annotated[str, StringConstraints(max_length=64), Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Bytes = Annotated[int, Field(ge=0, le=2**50)]
"""Up to 1 PiB."""
