"""Room for the next copy, made of copies that nobody needs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.files import contents
from helpers.hub_server import COMMIT, LONG_BYTES, hub_server, tensor_file
from uellm.hub.connection import HubSettings
from uellm.hub.copy_directory import promise
from uellm.hub.copy_locks import hold, locked_volume
from uellm.hub.copying import CopyWatch, copy_model
from uellm.hub.freeing import SPARED_S, Kept, make_room, to_come
from uellm.hub.remedies import OF_DOWNLOADS

SIZE = 100_000
FILES = {"config.json": b"{}", "model.safetensors": tensor_file({"a": [SIZE // 4]})}
UELLM = str(Path(sys.executable).with_name("uellm"))
A, B, C = (f"org/model/{letter * 40}" for letter in "abc")


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A volume of so many bytes, which the test sets."""
    volume = tmp_path / "volume"
    volume.mkdir()
    found = SimpleNamespace(volume=volume, bytes=3 * SIZE)

    def statvfs(_):
        used = sum(each.lstat().st_size for each in volume.rglob("*") if each.is_file() and not each.is_symlink())
        return SimpleNamespace(f_bavail=max(0, found.bytes - used), f_frsize=1, f_blocks=found.bytes)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return found


def put(disk, place, *, age_s=3600.0, size=SIZE, complete=True):
    """A copy that was used so long ago."""
    directory = disk.volume / place
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(bytes(size))
    (directory / "deep").mkdir()
    (directory / "deep" / "file").write_bytes(b"x")
    if complete:
        (directory / ".complete").write_text(json.dumps({"version": 1, "sizes": {"model.safetensors": size}}))
    lock = directory / ".lock"
    lock.touch()
    os.utime(lock, (time.time() - age_s,) * 2)
    return directory


def kept(*places, age_s=0.0):
    """What stays, as it was decided so long ago."""
    return Kept(frozenset(places), time.time() - age_s)


def limited(limit_bytes):
    """What may go where all copies together may take so many bytes."""
    return Kept(frozenset(), time.time(), limit_bytes)


def there(disk):
    return {each.parent.relative_to(disk.volume).as_posix() for each in disk.volume.rglob("model.safetensors")}


def test_the_copy_that_was_used_least_recently_goes_first_and_no_more_than_needed(disk):
    put(disk, A, age_s=2000)
    put(disk, B, age_s=9000)
    make_room(disk.volume, 2 * SIZE - 2000, kept())
    assert there(disk) == {A}
    assert sorted(each.name for each in (disk.volume / B).iterdir()) == [".lock"]


def test_what_was_never_completed_goes_before_what_was(disk):
    put(disk, A, age_s=9000)
    put(disk, B, age_s=2000, complete=False)
    make_room(disk.volume, 2 * SIZE - 2000, kept())
    assert there(disk) == {A}


def test_what_is_needed_stays_even_if_there_is_too_little_room(disk):
    put(disk, A)
    put(disk, B)
    make_room(disk.volume, 2 * SIZE - 2000, kept(A))
    assert there(disk) == {A}
    make_room(disk.volume, 3 * SIZE - 2000, kept(A))
    assert there(disk) == {A}


def test_nothing_goes_where_that_would_not_suffice(disk):
    for place in (A, B):
        put(disk, place)
    make_room(disk.volume, 10 * SIZE, kept())
    assert there(disk) == {A, B}


def test_nothing_goes_where_there_is_room(disk):
    put(disk, A)
    make_room(disk.volume, SIZE, kept())
    assert there(disk) == {A}


def test_what_is_written_or_was_found_a_moment_ago_stays(disk):
    writing = put(disk, A)
    put(disk, B, age_s=SPARED_S / 2)
    with (writing / ".lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        make_room(disk.volume, 2 * SIZE, kept())
    assert there(disk) == {A, B}


def test_what_was_used_after_it_was_decided_what_stays_stays(disk):
    put(disk, A, age_s=2 * SPARED_S)
    make_room(disk.volume, 3 * SIZE - 2000, kept(age_s=3600.0))
    assert there(disk) == {A}
    make_room(disk.volume, 3 * SIZE - 2000, kept(age_s=SPARED_S / 2))
    assert there(disk) == set()


def test_what_is_no_copy_stays_and_links_lead_nowhere(disk, tmp_path):
    outside = tmp_path / "outside"
    put(SimpleNamespace(volume=outside), A)
    (disk.volume / "link").symlink_to(outside / "org")
    (disk.volume / "own" / "files" / "here").mkdir(parents=True)
    (disk.volume / "own" / "files" / "here" / "model.safetensors").write_bytes(b"mine")
    inside = put(disk, B)
    (inside / "out").symlink_to(outside)
    before = contents(outside)
    make_room(disk.volume, 3 * SIZE - 2000, kept())
    assert contents(outside) == before
    assert there(disk) == {"own/files/here"}


@pytest.fixture
def hub():
    with hub_server() as server:
        server.files = dict(FILES)
        yield server


def fetch(hub, disk, stays):
    settings = HubSettings(hub.url, "", OF_DOWNLOADS)
    return copy_model("org/model", COMMIT, disk.volume, settings, CopyWatch(), where="claim x", kept=stays)


def test_a_revision_that_changed_twice_takes_the_room_of_the_one_in_between(hub, disk):
    """A is served, B was copied and never served, and the disk holds two."""
    put(disk, A)
    put(disk, B)
    disk.bytes = 2 * SIZE + SIZE // 2
    assert fetch(hub, disk, kept(A)).commit == COMMIT
    assert there(disk) == {A, f"org/model/{COMMIT}"}


def test_a_disk_on_which_all_is_needed_is_full_and_nothing_is_lost(hub, disk):
    put(disk, A)
    put(disk, B)
    disk.bytes = 2 * SIZE + SIZE // 2
    assert fetch(hub, disk, kept(A, B)).reason == "VolumeFull"
    assert fetch(hub, disk, None).reason == "VolumeFull"
    assert there(disk) == {A, B}


def test_a_copy_that_is_found_again_counts_as_used(hub, disk):
    found = fetch(hub, disk, None)
    lock = disk.volume / found.directory / ".lock"
    os.utime(lock, (1.0, 1.0))
    assert fetch(hub, disk, None) == found
    assert lock.stat().st_mtime > 1.0


def test_a_copy_in_the_middle_of_which_its_deletion_ended_is_no_copy(hub, disk):
    found = fetch(hub, disk, None)
    (disk.volume / found.directory / ".complete").unlink()
    os.utime(disk.volume / found.directory / ".lock", (1.0, 1.0))
    put(disk, A)
    assert fetch(hub, disk, kept(A)) == found


def test_a_limit_makes_room_although_the_disk_has_more(disk):
    disk.bytes = 100 * SIZE
    put(disk, A, age_s=9000)
    put(disk, B, age_s=2000)
    make_room(disk.volume, SIZE, limited(4 * SIZE))
    assert there(disk) == {A, B}
    make_room(disk.volume, SIZE, limited(2 * SIZE + SIZE // 2))
    assert there(disk) == {B}


def test_a_copy_that_a_process_holds_stays(disk):
    held = hold(put(disk, A, age_s=9000))
    put(disk, B, age_s=2000)
    make_room(disk.volume, 3 * SIZE - 2000, kept())
    assert there(disk) == {A, B}, "without the one that is held there is too little room"
    make_room(disk.volume, 2 * SIZE - 2000, kept())
    assert there(disk) == {A}
    os.close(held)
    disk.bytes = SIZE
    make_room(disk.volume, SIZE // 2, kept())
    assert there(disk) == set()


def test_a_model_above_the_limit_is_refused_and_nothing_is_deleted_for_it(disk):
    disk.bytes = 100 * SIZE
    put(disk, A, age_s=9000)
    with hub_server() as server:
        server.files = FILES
        found = copy_model(
            "org/model",
            COMMIT,
            disk.volume,
            HubSettings(server.url, remedies=OF_DOWNLOADS),
            CopyWatch(),
            where="the node's directory for models",
            kept=limited(SIZE // 2),
        )
    assert found.reason == "VolumeFull"
    assert found.message.startswith("the node's directory for models may hold 50 kB, of which 0 B are free, and 50")
    assert there(disk) == {A}


def test_a_part_of_a_node_s_disk_stays_free(disk):
    put(disk, A, age_s=9000)
    with hub_server() as server:
        server.files = FILES
        settings = HubSettings(server.url, remedies=OF_DOWNLOADS)
        reserving = Kept(frozenset([A]), time.time(), None, 0.5)
        where = "the node's directory for models"
        found = copy_model("org/model", COMMIT, disk.volume, settings, CopyWatch(), where=where, kept=reserving)
    assert found.reason == "VolumeFull"
    assert "beside the 50% of its disk that stay free for the node" in found.message


def test_a_copy_that_cannot_be_written_to_is_used_without_being_held(disk, monkeypatch):
    copy = put(disk, A)

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    assert hold(copy) is None


def test_a_file_that_gets_its_name_while_it_is_counted_costs_the_rest_no_place_in_the_sum(disk, monkeypatch):
    writing = put(disk, A)
    promise(writing, 3 * SIZE)
    (writing / "next.safetensors.part").write_bytes(b"x")
    lstat = os.lstat

    def renamed_before(path, **options):
        if str(path).endswith(".part"):
            os.replace(path, str(path).removesuffix(".part"))
        return lstat(path, **options)

    with (writing / ".lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(os, "lstat", renamed_before)
        assert 0 < to_come(disk.volume, B) <= 2 * SIZE
    assert (writing / "next.safetensors").exists()


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_volume_s_lock_cannot_be_held_a_copy_goes_on_without_it(disk, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_volume(disk.volume, pytest.fail):
        pass
    with pytest.raises(OSError, match="in the middle"), locked_volume(disk.volume, pytest.fail):
        raise OSError("in the middle")


def test_a_pipe_that_another_user_put_in_place_of_the_volume_s_lock_holds_nobody_up(disk, monkeypatch):
    os.mkfifo(disk.volume / ".lock")
    opened = os.open

    def as_another_user(path, flags, *mode):
        if flags & os.O_RDWR and not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", as_another_user)
    with locked_volume(disk.volume, pytest.fail):
        pass


OTHER = "org/other"


def fetching(hub, volume, name, *options):
    """A process of `uellm fetch`."""
    command = [UELLM, "fetch", f"hf://{name}", str(volume), *options]
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_half(volume):
    """Until one half of a model has come."""
    deadline = time.monotonic() + 30
    while not any(each.stat().st_size > LONG_BYTES // 2 for each in volume.rglob("*.safetensors.part")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("ended", [False, True], ids=["goes on", "was killed"])
def test_a_copy_counts_what_another_process_will_still_write(hub, tmp_path, ended):
    """Each of two models of 3 MB fits into 5 MB, and not both; one half of the first has come."""
    hub.files = {**FILES, "model.safetensors": tensor_file({"a": [3 * LONG_BYTES // 2]})}
    hub.others, hub.hold = {OTHER: hub.files}, tmp_path / "go-on"
    volume = tmp_path / "volume"
    volume.mkdir()
    first = fetching(hub, volume, "org/model", "--limit", "5Mi")
    wait_for_half(volume)
    if ended:
        first.kill()
        first.communicate()
        hub.hold.touch()
    second = fetching(hub, volume, OTHER, "--limit", "5Mi")
    told = second.communicate(timeout=60)[1]
    hub.hold.touch()
    if ended:  # what it had promised counts no more
        assert second.returncode == 0, told
        return
    assert second.returncode == 1
    assert re.search(r"are free, and 3\.1 MB are still to come, beside [\d.]+ [kM]B of copies that are under way", told)
    assert first.wait(timeout=60) == 0
    assert not list(volume.rglob(".promised"))
    assert fetching(hub, volume, "org/model", "--limit", "5Mi").wait(timeout=60) == 0
