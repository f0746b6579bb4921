"""How well each class of the pinned engine's registry is sized from its config.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uellm.models.classes import served_classes
from uellm.models.families.readers import READERS
from uellm.models.families.table import traits_of
from uellm.models.finding import FLAT_WRAPPERS
from uellm.models.tasks import Task, tasks_of

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
        return Support(name, EXACT, f"`{family}`")
    if group in WRAPPERS:
        return Support(
            name, EXACT, "where its text model and its encoders are exact; otherwise a note says what is not"
        )
    return Support(name, APPROXIMATE, "read by its fields as a decoder like Llama, unless its text model is known")
