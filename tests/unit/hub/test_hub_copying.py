"""Copying a model's files from a hub to a directory; on real sockets."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from helpers.files import contents
from helpers.hub_server import COMMIT, hub_server, tensor_file
from uellm.hub import LookUpRefusal, copying
from uellm.hub.connection import HubSettings
from uellm.hub.copy_directory import check_room, disk_refusal
from uellm.hub.copy_locks import locked
from uellm.hub.copy_state import Copied
from uellm.hub.copying import CopyWatch, copy_model
from uellm.hub.reading import RefusedError
from uellm.hub.remedies import OF_DOWNLOADS

NEEDED = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}' * 100,
    "model.safetensors": tensor_file({"a": [512, 8]}),
    "1_Pooling/config.json": b'{"pooling": true}',
}
OTHERS = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"weights" * 999,
    "onnx/model.json": b"{}",
    ".gitattributes": b"",
}
PLACE = f"org/model/{COMMIT}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(copying, "FIRST_WAIT_S", 0.001)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def hub():
    with hub_server() as server:
        server.files = {**NEEDED, **OTHERS}
        yield server


def copied(hub, volume, revision="main", *, token="", repository="org/model", watch=None):
    settings = HubSettings(hub.url, token, OF_DOWNLOADS)
    return copy_model(repository, revision, volume, settings, watch or CopyWatch(), where="claim models")


def ranges(hub, name):
    return [headers["range"] for path, headers in hub.asked if path.endswith(f"/{name}")]


# What is copied.


def test_what_the_engine_needs_is_copied_below_repository_and_commit(hub, tmp_path):
    whole = sum(map(len, NEEDED.values()))
    assert copied(hub, tmp_path) == Copied(COMMIT, PLACE, 4, whole)
    assert contents(tmp_path / PLACE) == NEEDED
    assert not list(tmp_path.rglob("*.part"))


def test_a_copy_that_is_complete_is_found_without_the_hub(hub, tmp_path):
    first = copied(hub, tmp_path)
    hub.asked.clear()
    assert copied(hub, tmp_path, COMMIT) == first
    assert hub.asked == []


def test_a_branch_is_asked_for_its_commit_and_nothing_is_copied_twice(hub, tmp_path):
    copied(hub, tmp_path)
    hub.asked.clear()
    copied(hub, tmp_path)
    assert [path for path, _ in hub.asked] == ["/org/model/resolve/main/config.json"]


def test_every_page_of_the_list_is_read(hub, tmp_path):
    hub.page_files = 3
    copied(hub, tmp_path)
    assert contents(tmp_path / PLACE) == NEEDED


def test_the_names_of_a_stranger_s_files_lead_nowhere_else(hub, tmp_path):
    hub.files |= {
        "../../outside.json": b"x",
        "/etc/outside.json": b"x",
        "a//b.json": b"x",
        ".lock": b"x",
        "x\n.json": b"",
        f"{'x' * 300}.json": b"x",
        f"{'é' * 120}.json": b"x",
    }
    copied(hub, tmp_path)
    assert set(contents(tmp_path)) == {f"{PLACE}/{name}" for name in NEEDED}


def test_a_link_that_somebody_put_into_the_volume_is_not_written_through(hub, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("kept")
    volume = tmp_path / "volume"
    (volume / PLACE).mkdir(parents=True)
    (volume / PLACE / "config.json.part").symlink_to(secret)
    assert copied(hub, volume).reason == "Unwritable"
    assert secret.read_text() == "kept"


def test_a_link_in_place_of_a_directory_is_not_followed(hub, tmp_path):
    volume, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    (volume / PLACE).mkdir(parents=True)
    elsewhere.mkdir()
    (volume / PLACE / "1_Pooling").symlink_to(elsewhere)
    refusal = copied(hub, volume)
    assert refusal.reason == "Unwritable"
    assert refusal.message.endswith(" (1_Pooling): remove it from the volume")
    assert contents(elsewhere) == {}


def test_a_link_in_place_of_the_next_marker_is_not_written_through(hub, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("kept")
    (tmp_path / PLACE).mkdir(parents=True)
    (tmp_path / PLACE / ".complete.part").symlink_to(secret)
    assert copied(hub, tmp_path).reason == "Unwritable"
    assert secret.read_text() == "kept"


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo], ids=["directory", "pipe"])
@pytest.mark.parametrize(
    "name", ["config.json", "config.json.part", ".lock", ".complete", ".complete.part", ".promised"]
)
def test_what_is_in_the_way_of_a_file_is_named_or_replaced(hub, tmp_path, name, put):
    (tmp_path / PLACE).mkdir(parents=True)
    put(tmp_path / PLACE / name)
    found = copied(hub, tmp_path, COMMIT)
    if isinstance(found, LookUpRefusal):
        assert found.reason == "Unwritable"
        assert found.message.startswith("claim models cannot be written: ")
        assert found.message.endswith(": remove it from the volume")
    else:
        assert contents(tmp_path / PLACE) == NEEDED


def test_a_link_in_place_of_a_file_is_replaced(hub, tmp_path):
    (tmp_path / PLACE).mkdir(parents=True)
    (tmp_path / PLACE / "config.json").symlink_to("ab")  # as long as the file
    copied(hub, tmp_path)
    assert contents(tmp_path / PLACE) == NEEDED
    assert not (tmp_path / PLACE / "config.json").is_symlink()


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"[" * 100_000,
        b"[]",
        b'{"version": 1}',
        b'{"version": 1, "files": Infinity, "bytes": -1}',
        b'{"version": 1, "sizes": {}}',
        b'{"version": 1, "sizes": []}',
        b'{"version": 1, "sizes": {"config.json": -1}}',
        b'{"version": 1, "sizes": {"config.json": "2"}}',
        b'{"version": 1, "sizes": {"config.json": 2}}',
        b'{"version": 1, "sizes": {"\\u0000": 2}}',
        b'{"version": 1, "sizes": {"\\ud800": 2}}',
    ],
)
def test_a_marker_that_lies_is_not_believed(hub, tmp_path, lie):
    (tmp_path / PLACE).mkdir(parents=True)
    (tmp_path / PLACE / ".complete").write_bytes(lie)
    assert copied(hub, tmp_path, COMMIT).files == 4
    assert contents(tmp_path / PLACE) == NEEDED


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "link"])
def test_a_marker_that_is_no_file_is_replaced(hub, tmp_path, put):
    (tmp_path / PLACE).mkdir(parents=True)
    put(tmp_path / PLACE / ".complete")
    assert copied(hub, tmp_path, COMMIT).files == 4
    hub.asked.clear()
    assert copied(hub, tmp_path, COMMIT).files == 4
    assert hub.asked == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_was_taken_from_a_complete_copy_is_received_again(hub, tmp_path, name):
    first = copied(hub, tmp_path)
    (tmp_path / PLACE / name).unlink()  # as `rm -r COMMIT/*` does, which leaves the marker
    hub.asked.clear()
    assert copied(hub, tmp_path, COMMIT) == first
    assert contents(tmp_path / PLACE) == NEEDED
    assert len([path for path, _ in hub.asked if "/resolve/" in path]) == 1


# Answers that are not what was asked for.


def test_another_part_of_a_file_than_was_asked_for_is_not_taken(hub, tmp_path):
    hub.told = {"Content-Range": "bytes 7-10/11"}
    assert copied(hub, tmp_path, COMMIT) == LookUpRefusal(
        "InvalidAnswer", f"{hub.url} cannot be copied from: it sends another part of a file than it is asked for"
    )


def test_a_file_that_is_packed_on_the_way_is_told_as_that(hub, tmp_path):
    hub.told = {"Content-Encoding": "gzip"}
    assert copied(hub, tmp_path, COMMIT) == LookUpRefusal(
        "InvalidAnswer", f"{hub.url} cannot be copied from: it packs files, although it is asked not to"
    )


@pytest.mark.parametrize("size", ["9" * 5000, "-1", "²", "*"])
def test_a_size_that_is_none_in_a_header_does_no_harm(hub, tmp_path, size):
    hub.told = {"Content-Range": f"bytes 0-1/{size}".encode().decode("latin-1")}
    assert copied(hub, tmp_path, COMMIT).files == 4


@pytest.mark.parametrize(
    "target", ["http://[", "http://hub:99999/x", "http://hub/\x01", f"http://{'x' * 70}/", "http://hub/" + "x" * 65535]
)
def test_a_redirect_to_what_is_no_address_is_refused(hub, tmp_path, target):
    hub.redirects = {"model.safetensors": target}
    assert copied(hub, tmp_path, COMMIT).reason in ("InvalidAnswer", "Unreachable")


# Interruptions.


def test_a_file_goes_on_where_it_was(hub, tmp_path):
    content = NEEDED["model.safetensors"]
    part = tmp_path / PLACE / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:1000])
    copied(hub, tmp_path)
    assert ranges(hub, "model.safetensors") == [f"bytes=1000-{len(content) - 1}"]
    assert contents(tmp_path / PLACE) == NEEDED


def test_a_server_without_ranges_sends_the_file_from_its_beginning(hub, tmp_path):
    hub.ranges = False
    part = tmp_path / PLACE / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(NEEDED["model.safetensors"][:1000])
    copied(hub, tmp_path)
    assert contents(tmp_path / PLACE) == NEEDED


def test_connections_that_break_again_and_again_cost_nothing_that_was_received(hub, tmp_path):
    hub.cut_bytes = 3000
    copied(hub, tmp_path)
    assert contents(tmp_path / PLACE) == NEEDED
    assert [each.partition("-")[0] for each in ranges(hub, "model.safetensors")] == [
        "bytes=0",
        "bytes=3000",
        "bytes=6000",
    ]


def test_a_damaged_beginning_is_received_again(hub, tmp_path):
    part = tmp_path / PLACE / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 1000)
    copied(hub, tmp_path)
    assert contents(tmp_path / PLACE) == NEEDED


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_checksum_never_gets_its_name(hub, tmp_path, name):
    hub.damaged = {name: bytes(len(NEEDED[name]))}
    refusal = copied(hub, tmp_path)
    message = (
        f"{hub.url}/org/model cannot be copied: {name} has another checksum than the hub says, which a proxy or a "
        "mirror may cause: ask the hub itself"
    )
    assert refusal == LookUpRefusal("ChecksumMismatch", message)
    assert not (tmp_path / PLACE / name).exists()
    assert not (tmp_path / PLACE / ".complete").exists()
    hub.damaged = {}
    assert copied(hub, tmp_path).files == 4


class Waiting(CopyWatch):
    """Says when its copy has begun to wait."""

    def __init__(self):
        super().__init__()
        self.began = threading.Event()

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if (name, value) == ("waits", True):
            self.began.set()


def test_while_one_writes_the_others_wait_and_find_the_copy(hub, tmp_path):
    (tmp_path / PLACE).mkdir(parents=True)
    results, watches = [], [Waiting(), Waiting()]
    threads = [
        threading.Thread(target=lambda w=watch: results.append(copied(hub, tmp_path, watch=w))) for watch in watches
    ]
    with locked(tmp_path / PLACE, lambda: None):
        for thread, watch in zip(threads, watches, strict=True):
            thread.start()
            assert watch.began.wait(20)
            assert watch.progress().waits
        assert contents(tmp_path) == {}
    for thread in threads:
        thread.join(20)
    assert results[0] == results[1] == Copied(COMMIT, PLACE, 4, sum(map(len, NEEDED.values())))
    assert len(ranges(hub, "model.safetensors")) == 1


def test_progress_is_what_lies_in_the_directory(hub, tmp_path):
    now = [0.0]
    watch = CopyWatch(clock=lambda: now[0])
    assert watch.progress() == (0, 0, None, False)
    directory = tmp_path / PLACE
    copied(hub, tmp_path, watch=watch)
    now[0] = 30.0
    whole = sum(map(len, NEEDED.values()))
    assert watch.progress() == (whole, whole, 0.0, False)
    (directory / "model.safetensors").rename(directory / "model.safetensors.part")
    os.truncate(directory / "model.safetensors.part", 100)
    present = whole - len(NEEDED["model.safetensors"]) + 100
    left_s = pytest.approx((whole - present) * 30 / present)
    assert watch.progress() == (present, whole, left_s, False)


# Refusals.


def test_a_gated_repository_is_told_as_a_look_up_tells_it(hub, tmp_path):
    hub.token = "hf_secret"
    refusal = copied(hub, tmp_path)
    assert (refusal.reason, "(spec.model.tokenSecretRef)" in refusal.message) == ("Gated", True)
    assert copied(hub, tmp_path, token="hf_secret").files == 4


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        (401, {}, "NoSuchRepository"),
        (403, {"X-Error-Code": "GatedRepo"}, "Gated"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "NoSuchRevision"),
        (429, {"Retry-After": "300"}, "RateLimited"),
        (500, {}, "Unreachable"),
    ],
)
def test_a_hub_that_refuses_is_told_by_its_reason(hub, tmp_path, status, headers, reason):
    hub.failure = (status, headers)
    refusal = copied(hub, tmp_path, COMMIT)
    assert refusal.reason == reason
    assert "\n" not in refusal.message


def test_a_hub_that_is_down_names_what_may_be_set(hub, tmp_path):
    hub.url = "http://127.0.0.1:9"
    refusal = copied(hub, tmp_path)
    assert refusal.reason == "Unreachable"
    assert refusal.message.endswith(
        "set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy in spec.engine.env, or fill the volume elsewhere with "
        "`uellm fetch`"
    )


def test_a_redirect_of_weights_into_the_network_is_not_followed(hub, tmp_path):
    hub.redirects = {"model.safetensors": "http://10.0.0.1/stored/model.safetensors"}
    refusal = copied(hub, tmp_path)
    assert refusal.reason == "AddressRefused"
    assert "10.0.0.1" in refusal.message


def test_a_redirect_to_the_hub_itself_is_followed(hub, tmp_path):
    hub.redirects = {"model.safetensors": f"{hub.url}{{}}"}
    copied(hub, tmp_path)
    assert contents(tmp_path / PLACE) == NEEDED


def test_a_repository_without_weights_is_refused_before_anything_is_copied(hub, tmp_path):
    hub.files = {"config.json": b"{}"}
    assert copied(hub, tmp_path).reason == "NoWeights"
    assert contents(tmp_path) == {}


def test_a_volume_that_is_too_small_is_told_with_both_sizes(tmp_path):
    with pytest.raises(RefusedError) as refused:
        check_room(tmp_path, 10**18, "claim models")
    reason, message, _ = vars(refused.value.refusal).values()
    assert reason == "VolumeFull"
    assert message.startswith("claim models is too small: ")
    assert message.endswith(
        " are free, and 1000000 TB are still to come: enlarge it (spec.model.cache.size where the operator has made "
        "it), or remove what is not needed from it"
    )


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, f"Permission denied: let uid {os.geteuid()} or one of the groups "),
        (errno.EROFS, "Read-only file system: use a volume that can be mounted for writing"),
        (errno.ENOLCK, "No locks available: use a file system with locks (flock)"),
        (errno.EIO, "Input/output error: look at the volume's storage"),
    ],
)
def test_a_volume_that_cannot_be_written_is_told_with_what_to_do(number, said):
    refusal = disk_refusal(OSError(number, os.strerror(number)), "claim models")
    assert refusal.reason == "Unwritable"
    assert refusal.message.startswith(f"claim models cannot be written: {said}")
