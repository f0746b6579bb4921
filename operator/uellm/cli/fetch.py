"""`uellm fetch`: copies the files of a model that the engine reads from a hub to a directory.

By hand it shows its progress and ends with the copy. In a pod (`--listen`) it serves its progress, and then the result.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from uellm.api.scalars import quantity
from uellm.cli.arguments import listen_address, positive, progress
from uellm.cli.hub import repository_of
from uellm.cli.serving import ServedResult, log_to_stderr, serve
from uellm.errors import BadInput, CannotBeDone
from uellm.hub import LookUpRefusal
from uellm.hub.connection import HubSettings
from uellm.hub.copy_directory import make_compiled
from uellm.hub.copy_document import to_document
from uellm.hub.copy_locks import hold, note_use
from uellm.hub.copy_state import Copied, copy_path, described
from uellm.hub.copying import CopyWatch, copy_model
from uellm.hub.freeing import Kept
from uellm.hub.remedies import OF_DOWNLOADS, OF_FETCH
from uellm.pod_interface import DOWNLOAD_PATH, METRICS_PORT
from uellm.text import counted, decimal_size

DEFAULT_SECONDS = 600.0
SHOW_EVERY_S = 5.0
NOTE_USE_EVERY_S = 300.0
RESERVE_SHARE = 0.15
"""Of a node's disk. The kubelet evicts pods when 10 % are left."""
LIMIT_FILE = ".limit"
"""In the directory of a node: what all copies may take. So a changed limit holds for pods that there are already."""
logger = logging.getLogger("uellm.fetch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "model",
        metavar="hf://OWNER/NAME",
        help="the model's name on the hub, with @REVISION if it is not main (HF_ENDPOINT, HF_TOKEN)",
    )
    parser.add_argument(
        "directory", metavar="DIRECTORY", help="the volume: the copy goes to OWNER/NAME/COMMIT below it"
    )
    parser.add_argument(
        "--listen",
        metavar="[HOST]:PORT",
        help=f"serve the progress at {DOWNLOAD_PATH} of this address, and then the result; else end with the copy",
    )
    parser.add_argument("--called", metavar="NAME", help="what sentences call the directory (default: its path)")
    parser.add_argument(
        "--compiled",
        metavar="SERVICE",
        help="also make a directory on the volume that the service's engines may write compiled code to",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=hf://OWNER/NAME",
        help="a LoRA adapter to copy as well, with @REVISION if it is not main",
    )
    parser.add_argument(
        "--draft",
        metavar="hf://OWNER/NAME",
        help="the model or head that drafts for speculation, to copy as well, with @REVISION if it is not main",
    )
    parser.add_argument(
        "--free",
        action="store_true",
        help="where room is lacking, delete other copies on the volume, the least recently used first",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="OWNER/NAME/COMMIT",
        help="a copy that --free does not delete",
    )
    parser.add_argument(
        "--keep-as-of",
        type=positive,
        metavar="SECONDS",
        help="since 1970: copies that were used later are not deleted, either (default: now)",
    )
    parser.add_argument(
        "--limit",
        type=_bytes,
        metavar="SIZE",
        help="of all copies in the directory, such as 500Gi: those that no process holds are deleted for the next one, "
        "the least recently used first (default with --hold: what the file .limit there says)",
    )
    parser.add_argument(
        "--hold",
        action="store_true",
        help="hold the copy until the process is ended, so that no other process deletes it, and leave 15 %% of the "
        "disk free (with --listen)",
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=DEFAULT_SECONDS,
        metavar="SECONDS",
        help="how long the result is served if nobody ends it (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Copy, and serve or show how far it is."""
    model = repository_of(args.model)
    others = {f"adapter {name}": adapter for name, adapter in map(_adapter, args.adapter)}
    if args.draft is not None:
        others["draft model"] = repository_of(args.draft)
    volume = Path(args.directory)
    if not volume.is_dir():
        raise BadInput(args.directory, "is no directory")
    remedies = OF_FETCH if args.listen is None else OF_DOWNLOADS
    settings, watch = HubSettings.from_environment(remedies), CopyWatch()

    def work_out() -> Copied | LookUpRefusal:
        found = _copied(args, [("", model), *others.items()], settings, watch)
        if isinstance(found, LookUpRefusal) or args.compiled is None:
            return found
        return found._replace(compiled=make_compiled(volume, args.compiled))

    if args.listen is None:
        return _by_hand(work_out, watch, volume)
    host, port = listen_address(args.listen, "--listen", f":{METRICS_PORT}")
    log_to_stderr()
    try:
        served = ServedResult(host, port, DOWNLOAD_PATH, args.seconds, stays=args.hold)
        asyncio.run(serve(served, work_out, _told, _show(watch), logger, _is_copy))
    finally:
        watch.ended.set()
    # A hub that has stopped sending would keep the process; a copy that is ended anywhere goes on there.
    logging.shutdown()
    os._exit(0)


def _copied(
    args: argparse.Namespace, wanted: list[tuple[str, tuple[str, str]]], settings: HubSettings, watch: CopyWatch
) -> Copied | LookUpRefusal:
    """Copy what is wanted, the model first, by its name in sentences; hold it if asked to."""
    volume, places = Path(args.directory), [copy_path(*each) for _, each in wanted]
    kept = _kept(args, volume, places)
    copies: list[Copied] = []
    for name, each in wanted:
        found = copy_model(*each, volume, settings, watch, where=args.called or args.directory, kept=kept)
        if isinstance(found, LookUpRefusal):
            return replace(found, message=f"{name}: {found.message}") if name else found
        copies.append(found)
        if args.hold:
            _hold(volume / found.directory, watch.ended)
    return copies[0]._replace(files=sum(each.files for each in copies), bytes=sum(each.bytes for each in copies))


def _kept(args: argparse.Namespace, volume: Path, places: list[str]) -> Kept | None:
    """What stays where other copies make room; None where nothing is deleted."""
    if not (args.free or args.hold or args.limit is not None):
        return None
    limit_bytes = _limit_of(volume) if args.hold and args.limit is None else args.limit
    reserve_share = RESERVE_SHARE if args.hold else 0.0
    return Kept(frozenset([*args.keep, *places]), args.keep_as_of or time.time(), limit_bytes, reserve_share)


def _hold(directory: Path, ended: threading.Event) -> None:
    """Keep the copy for as long as the process runs, and note its use."""
    if hold(directory) is None:
        logger.warning("%s cannot be held: others made it, so nobody deletes it either", directory)

    def keep() -> None:
        while not ended.wait(NOTE_USE_EVERY_S):
            note_use(directory)
        note_use(directory)

    threading.Thread(target=keep, daemon=True).start()


def _limit_of(volume: Path) -> int | None:
    """The limit that is written down in the directory; None for none."""
    try:
        text = (volume / LIMIT_FILE).read_text().strip()
    except OSError:
        return None
    return int(quantity(text)) if text else None


def _bytes(argument: str) -> int:
    try:
        return int(quantity(argument))
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _is_copy(found: Copied | LookUpRefusal) -> bool:
    return isinstance(found, Copied)


def _adapter(argument: str) -> tuple[str, tuple[str, str]]:
    name, separator, uri = argument.partition("=")
    if not separator:
        raise BadInput("--adapter", f"{argument} is not NAME=hf://OWNER/NAME")
    return name, repository_of(uri)


def _by_hand(work_out: Callable[[], Copied | LookUpRefusal], watch: CopyWatch, volume: Path) -> int:
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(SHOW_EVERY_S):
            progress(described(watch.progress()))

    threading.Thread(target=report, daemon=True).start()
    try:
        found = work_out()
    finally:
        ended.set()
        watch.ended.set()
    if isinstance(found, LookUpRefusal):
        raise CannotBeDone(found.message)
    progress(_told(found))
    print(volume / found.directory)
    return 0


def _show(watch: CopyWatch) -> Callable[[asyncio.Future[Copied | LookUpRefusal]], web.Response]:
    def show(found: asyncio.Future[Copied | LookUpRefusal]) -> web.Response:
        return web.json_response(to_document(found.result() if found.done() else watch.progress()))

    return show


def _told(found: Copied | LookUpRefusal) -> str:
    if isinstance(found, LookUpRefusal):
        return f"{found.reason}: {found.message}"
    return f"{counted(found.files, 'file')} of {decimal_size(found.bytes)}, commit {found.commit}"
