"""The document as a file of a directory that pod and profiler share. A reader never sees half of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from uellm.documents import UnreadableDocument, parsed
from uellm.measuring.document import NAME, MeasurementDocument

MOST_BYTES = 2**20
"""The document of 16 GPUs takes 50 KiB."""


def read_document(directory: Path) -> MeasurementDocument | None:
    """The document; None where there is none. Raises UnreadableDocument."""
    path = directory / NAME
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableDocument(str(path), str(error.strerror or error)) from error
    if len(content) > MOST_BYTES:
        raise UnreadableDocument(str(path), f"it has more than {MOST_BYTES} bytes")
    return MeasurementDocument.from_dict(parsed(str(path), content))


def write_document(directory: Path, document: MeasurementDocument) -> None:
    """Replace the document. Raises OSError."""
    unfinished = directory / f".{NAME}.unfinished"
    with unfinished.open("w") as stream:
        json.dump(document.to_dict(), stream)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(directory / NAME)
