"""`uellm inspect`: looks a model up, and serves what was found until it is told to end. It downloads no weights."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from uellm.cli.arguments import listen_address, positive
from uellm.cli.hub import SCHEME, repository_of
from uellm.cli.serving import ServedResult, log_to_stderr, serve
from uellm.errors import BadInput
from uellm.hub import DraftFacts, LookUpRefusal, ModelFacts
from uellm.hub.adapter import AdapterFacts
from uellm.hub.connection import HubSettings
from uellm.hub.directory import read_directory_adapter, read_directory_facts
from uellm.hub.document import to_document
from uellm.hub.lookup import look_up, look_up_adapter
from uellm.hub.remedies import OF_SERVICES
from uellm.pod_interface import METRICS_PORT, MODEL_PATH

DEFAULT_LISTEN = f":{METRICS_PORT}"
DEFAULT_SECONDS = 600.0
logger = logging.getLogger("uellm.inspect")

LookUp = Callable[[], ModelFacts | LookUpRefusal]
LookUpAdapter = tuple[str, Callable[[], AdapterFacts | LookUpRefusal]]
"""Its name, and how it is looked up."""


class _Result(NamedTuple):
    told: str
    """What was found, for the log."""
    body: bytes
    """The document that is served."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "model",
        metavar="hf://OWNER/NAME|DIRECTORY",
        help="the model's name on the hub, with @REVISION if it is not main (HF_ENDPOINT, HF_TOKEN), or its directory",
    )
    parser.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="[HOST]:PORT",
        help=f"address of {MODEL_PATH} (default: %(default)s, on every address of the machine)",
    )
    parser.add_argument(
        "--volume",
        metavar="DIRECTORY",
        help="the volume that the directory is on: no link may lead out of it (default: the directory itself)",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=URI",
        help="a LoRA adapter to look up as well: hf://OWNER/NAME@REVISION, or DIRECTORY,VOLUME,CALLED",
    )
    parser.add_argument(
        "--draft",
        metavar="URI",
        help="the model or head that drafts for speculation, to look up as well: hf://OWNER/NAME@REVISION, or "
        "DIRECTORY,VOLUME",
    )
    parser.add_argument(
        "--only-adapters",
        action="store_true",
        help="the model itself is known already: look its adapters and its draft up alone",
    )
    parser.add_argument("--called", metavar="NAME", help="what sentences call the directory (default: its path)")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=DEFAULT_SECONDS,
        metavar="SECONDS",
        help="how long the result is served if nobody ends it (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Look up and serve."""
    look = _with_adapters(_look_up(args), [_adapter(each) for each in args.adapter])
    if args.draft is not None:
        look = _with_draft(look, args.draft)
    host, port = listen_address(args.listen, "--listen", DEFAULT_LISTEN)
    log_to_stderr()
    served = ServedResult(host, port, MODEL_PATH, args.seconds)
    asyncio.run(serve(served, lambda: _result(look()), lambda found: found.told, _show, logger))
    return 0


def _with_adapters(look: LookUp, adapters: Sequence[LookUpAdapter]) -> LookUp:
    """The model, then its adapters one after the other; the first refusal is the answer."""

    def all_of_them() -> ModelFacts | LookUpRefusal:
        facts, found = look(), list[AdapterFacts]()
        if isinstance(facts, LookUpRefusal):
            return facts
        for name, look_up_one in adapters:
            answer = look_up_one()
            if isinstance(answer, LookUpRefusal):
                return replace(answer, message=f"adapter {name}: {answer.message}")
            found.append(answer)
        return replace(facts, adapters=tuple(found))

    return all_of_them


def _with_draft(look: LookUp, argument: str) -> LookUp:
    """The same, then the draft."""

    def all_of_them() -> ModelFacts | LookUpRefusal:
        facts = look()
        if isinstance(facts, LookUpRefusal):
            return facts
        source, found = _draft(argument)
        if isinstance(found, LookUpRefusal):
            return replace(found, message=f"draft model: {found.message}")
        return replace(facts, draft=DraftFacts(source, found))

    return all_of_them


def _draft(argument: str) -> tuple[str, ModelFacts | LookUpRefusal]:
    if argument.startswith(SCHEME):
        repository, revision = repository_of(argument)
        return argument, look_up(repository, revision, HubSettings.from_environment(OF_SERVICES))
    directory, _, volume = argument.partition(",")
    return directory, read_directory_facts(Path(directory), Path(volume or directory), directory)


def _adapter(argument: str) -> LookUpAdapter:
    name, _, uri = argument.partition("=")
    if uri.startswith(SCHEME):
        repository, revision = repository_of(uri)
        return name, lambda: look_up_adapter(name, repository, revision, HubSettings.from_environment(OF_SERVICES))
    directory, volume, called = uri.split(",", 2)
    return name, lambda: read_directory_adapter(name, Path(directory), Path(volume), called)


def _look_up(args: argparse.Namespace) -> LookUp:
    if args.only_adapters:
        return lambda: ModelFacts("", {}, None)
    if args.model.startswith(SCHEME):
        repository, revision = repository_of(args.model)
        return lambda: look_up(repository, revision, HubSettings.from_environment(OF_SERVICES))
    directory = Path(args.model)
    if not directory.is_absolute():
        raise BadInput(args.model, "must be hf://owner/name, or an absolute path")
    return lambda: read_directory_facts(directory, Path(args.volume or directory), args.called or args.model)


def _show(found: asyncio.Future[_Result]) -> web.Response:
    if not found.done():
        return web.json_response({"reading": True}, status=503)
    return web.Response(body=found.result().body, content_type="application/json")


def _result(found: ModelFacts | LookUpRefusal) -> _Result:
    body = json.dumps(to_document(found)).encode()
    if isinstance(found, LookUpRefusal):
        return _Result(f"{found.reason}: {found.message}", body)
    weights = f"{found.files} safetensors files of {found.tensor_bytes} bytes"
    return _Result(f"found {weights}, commit {found.commit or 'none'}", body)
