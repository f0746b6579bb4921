"""How well each class of the pinned engine's registry is sized from its config.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uellm.models.classes import parts_of, served_classes
from uellm.models.families.readers import READERS
from uellm.models.families.table import traits_of
from uellm.models.finding import FLAT_WRAPPERS
from uellm.models.tasks import Task, tasks_of
from uellm.models.towers import TOWERS
from uellm.models.towers.queries import QFORMER, QUERIED

EXACT, APPROXIMATE, REFUSED = "exact", "approximate", "refused"
WRAPPERS = ("multimodal", "late_interaction")
NO_SIZES = {
    "Terratorch": "a model of images of the earth, whose config names no sizes",
    "OpenVLAForActionPrediction": "its config names a text model without its sizes",
}
"""Classes of which no config says the sizes."""


@dataclass(frozen=True, slots=True)
class Support:
    """What can be said of a class."""

    name: str
    verdict: str
    why: str

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can be served for; what is meant where nothing is set first."""
        return tasks_of({"architectures": [self.name]}).possible


def supported_classes() -> Iterator[Support]:
    """Every class that the engine serves, by name."""
    for name, kind, group in served_classes():
        yield _support(name, kind, group)


def _support(name: str, kind: str, group: str) -> Support:
    if name in NO_SIZES:
        return Support(name, REFUSED, f"{NO_SIZES[name]}; the safetensors headers tell them")
    if group == "speculative_decoding":
        return Support(
            name, APPROXIMATE, "drafts for another model (--speculative-config), and is none by itself; read like Llama"
        )
    if group == "transformers_backend":
        return Support(name, APPROXIMATE, "any class of transformers: as the model_type of its config is read")
    family = FLAT_WRAPPERS.get(kind, kind)
    traits = traits_of(family)
    if traits and traits.note:
        return Support(name, APPROXIMATE, traits.note)
    if family in READERS or traits:
        return _reckoned(name, _unknown_encoders(name)) or Support(name, EXACT, f"`{family}`")
    if group in WRAPPERS or parts_of(name):
        return _wrapper(name)
    return Support(name, APPROXIMATE, "read by its fields as a decoder like Llama, unless its text model is known")


def _wrapper(name: str) -> Support:
    """A text model with encoders around it, by the parts that its default config names."""
    parts = parts_of(name)
    if not parts:
        why = "its config alone names its parts: exact where they are known here, and a note says what is not"
        return Support(name, APPROXIMATE, why)
    queried = any(TOWERS.get(each) in QUERIED for each in parts)
    unknown = [each for each in parts if not (_is_exact(each) or (queried and each == QFORMER))]
    return _reckoned(name, unknown) or Support(name, EXACT, ", ".join(f"`{each}`" for each in parts))


def _unknown_encoders(name: str) -> list[str]:
    """Of the parts of a class whose text model is known."""
    return [each for each in parts_of(name) if not _is_exact(each) and ("vision" in each or "audio" in each)]


def _reckoned(name: str, unknown: list[str]) -> Support | None:
    if not unknown:
        return None
    return Support(name, APPROXIMATE, f"{', '.join(f'`{each}`' for each in unknown)} reckoned by its sizes")


def _is_exact(part: str) -> bool:
    traits = traits_of(part)
    return part in TOWERS or part in READERS or (traits is not None and not traits.note)
