"""Which files of a repository the engine needs, with their sizes and checksums, from the hub's list of them.

`GET ENDPOINT/api/models/OWNER/NAME/tree/COMMIT?recursive=true`, page by page (`Link: <...>; rel="next"`). A file in LFS
has the SHA-256 of its content, any other the SHA-1 of its git blob. Source: huggingface_hub's hf_api.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from uellm.errors import BadInput
from uellm.hub.connection import Answer, HubConnection
from uellm.hub.facts import LookUpRefusal
from uellm.hub.lookup import file_path
from uellm.hub.reading import INDEX_BYTES, RefusedError
from uellm.hub.refusals import refusal_of
from uellm.hub.remote_file import RemoteFile
from uellm.models.safetensors import CONSOLIDATED, INDEX, indexed_files

PAGE_BYTES, PAGES = 16 << 20, 100
MOST_FILES = 4096
LONGEST_NAME = 512
LONGEST_PART = 240
"""Bytes of a name between slashes: file systems take 255, and a file has a longer name until it is whole."""
DEEPEST = 4
_NEXT = re.compile(r'<([^>]+)>; *rel="next"')
_DIGEST = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha1": re.compile(r"[0-9a-f]{40}")}

# Configurations, tokenizers, chat templates, code of the model.
_SMALL = (".json", ".jsonl", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".yaml", ".yml", ".bpe", ".spm", ".vocab")
# SentencePiece's tokenizers of Mistral's own format, such as tokenizer.model.v3 and tokenizer.model.v7m1.
_VERSIONED = "tokenizer*.model.v*"
# Copies of the model in formats that the engine does not read.
_OTHER_FORMATS = frozenset({"original", "onnx", "openvino", "gguf", "coreml", "tflite", "metal", "assets"})
# What vLLM itself does not take for weights (filter_files_not_needed_for_inference).
_NO_WEIGHTS = ("training_args*", "optimizer*", "scheduler*", "scaler*", "trainer_state*")
# A layer of a sentence embedder, such as 2_Dense.
_LAYER = re.compile(r"\d+_\w+")


def needed_files(connection: HubConnection, repository: str, commit: str) -> list[RemoteFile]:
    """The files of a commit that the engine reads. Raises RefusedError."""
    listed = {each.path: each for each in _listed(connection, repository, commit)}
    indexed = _indexed(connection, repository, commit) if INDEX in listed else None
    wanted = wanted_paths(listed, indexed)
    page = f"{connection.settings.endpoint}/{repository}"
    if indexed is not None and (missing := sorted(set(indexed) & set(wanted) - set(listed))):
        raise RefusedError(_invalid(page, f"{INDEX} names {missing[0]}, which is not there"))
    if not any(_is_weights(path) for path in wanted):
        message = f"{page} has neither safetensors nor PyTorch weights: name a repository that has them"
        raise RefusedError(LookUpRefusal("NoWeights", message))
    return [listed[path] for path in wanted]


def wanted_paths(paths: Iterable[str], indexed: Iterable[str] | None = None) -> list[str]:
    """Of a repository's paths those that the engine reads, small ones first; each weight in one format only.

    `indexed`: the files that the index of the safetensors names; None where there is no index.
    """
    there = sorted(paths)
    small = [path for path in there if _is_small(path) and not _in_other_format(path)]
    places = sorted({str(PurePosixPath(path).parent) for path in there})
    weights = [path for place in places for path in _weights(place, there, indexed if place == "." else None)]
    return small + weights


def _weights(place: str, paths: list[str], indexed: Iterable[str] | None) -> list[str]:
    """The files of weights in a directory, in the order of preference of vLLM's DefaultModelLoader."""
    if place != "." and not _LAYER.fullmatch(place):
        return []
    here = [path for path in paths if str(PurePosixPath(path).parent) == place]
    if consolidated := [path for path in here if fnmatchcase(path, f"{CONSOLIDATED}*.safetensors")]:
        return consolidated
    if indexed is not None:
        return sorted(set(indexed))
    for suffix in (".safetensors", ".bin", ".pt"):
        found = [path for path in here if path.endswith(suffix) and not _is_of_training(path)]
        if found:
            return found
    return []


def _is_small(path: str) -> bool:
    return path.endswith(_SMALL) or fnmatchcase(PurePosixPath(path).name, _VERSIONED)


def _is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt"))


def _is_of_training(path: str) -> bool:
    return any(fnmatchcase(PurePosixPath(path).name, pattern) for pattern in _NO_WEIGHTS)


def _in_other_format(path: str) -> bool:
    return PurePosixPath(path).parts[0] in _OTHER_FORMATS and "/" in path


def _indexed(connection: HubConnection, repository: str, commit: str) -> list[str]:
    answer = connection.get(file_path(repository, commit, INDEX), limit=INDEX_BYTES)
    if isinstance(answer, LookUpRefusal):
        raise RefusedError(answer)
    if answer.status not in (200, 206):
        raise RefusedError(refusal_of(answer, repository, commit, connection.settings))
    page = f"{connection.settings.endpoint}/{repository}"
    try:
        return indexed_files(json.loads(answer.body), INDEX)
    except (ValueError, RecursionError, BadInput) as error:
        why = str(error) if isinstance(error, BadInput) else f"{INDEX} is not JSON"
        raise RefusedError(_invalid(page, why)) from None


def _listed(connection: HubConnection, repository: str, commit: str) -> list[RemoteFile]:
    endpoint = connection.settings.endpoint
    page = f"{endpoint}/{repository}"
    path = f"/api/models/{quote(repository)}/tree/{quote(commit, safe='')}?recursive=true"
    found: list[RemoteFile] = []
    for _ in range(PAGES):
        answer = connection.get(path, limit=PAGE_BYTES)
        if isinstance(answer, LookUpRefusal):
            raise RefusedError(answer)
        if answer.status not in (200, 206):
            raise RefusedError(_no_list(answer, connection, repository, commit))
        found += _entries(page, answer)
        if len(found) > MOST_FILES:
            raise RefusedError(_invalid(page, f"it has more than {MOST_FILES} files"))
        link = _NEXT.search(answer.headers.get("link", ""))
        if link is None:
            return found
        if not link[1].startswith((f"{endpoint}/", "/")):
            raise RefusedError(_invalid(page, "its list of files goes on at another address"))
        path = link[1].removeprefix(endpoint)
    raise RefusedError(_invalid(page, f"its list of files has more than {PAGES} pages"))


def _no_list(answer: Answer, connection: HubConnection, repository: str, commit: str) -> LookUpRefusal:
    if answer.status in (404, 405) and "x-error-code" not in answer.headers:
        endpoint = connection.settings.endpoint
        cause = f"{endpoint} does not answer /api/models/{repository}/tree, which lists its files: use a hub that does"
        return _invalid(f"{endpoint}/{repository}", cause)
    return refusal_of(answer, repository, commit, connection.settings)


def _entries(page: str, answer: Answer) -> list[RemoteFile]:
    try:
        entries = json.loads(answer.body)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise RefusedError(_invalid(page, "its list of files is none"))
    files = [each for each in entries if isinstance(each, dict) and each.get("type") == "file"]
    return [file for each in files if (file := _file(page, each)) is not None]


def _file(page: str, entry: dict[str, Any]) -> RemoteFile | None:
    """The file of an entry; None for one that no directory should hold."""
    path, lfs = entry.get("path"), entry.get("lfs")
    if not isinstance(path, str) or not _is_safe(path):
        return None
    told = lfs if isinstance(lfs, dict) else entry
    size = told.get("size")
    if type(size) is not int or size < 0:
        raise RefusedError(_invalid(page, f"{path} has no size"))
    digest = told.get("oid")
    kind = "sha256" if told is lfs else "sha1"
    known = digest if isinstance(digest, str) and _DIGEST[kind].fullmatch(digest) else ""
    return RemoteFile(path, size, sha256=known) if kind == "sha256" else RemoteFile(path, size, blob_sha1=known)


def _is_safe(path: str) -> bool:
    """Whether a stranger's path stays in the directory that it is appended to. Names that begin with a dot are ours."""
    parts = path.split("/")
    if not path.isprintable() or len(path) > LONGEST_NAME or len(parts) > DEEPEST or "\\" in path:
        return False
    return all(
        part and not part.startswith(".") and not part.endswith(".part") and len(part.encode()) <= LONGEST_PART
        for part in parts
    )


def _invalid(page: str, cause: str) -> LookUpRefusal:
    return LookUpRefusal("InvalidAnswer", f"{page} cannot be copied: {cause}")
