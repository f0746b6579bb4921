"""Builds image archives without a builder: one layer, a configuration and a manifest, for `ctr images import`."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAUSE_IMAGE = "uellm.local/pause:1"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def write_image(path: Path, name: str, files: dict[str, bytes], *, entrypoint: Sequence[str], user: str = "") -> None:
    """Write the image `name` as an archive at `path`. `files` maps paths to contents; all files are executable.

    A pod that must not run as root needs a numeric `user`.
    """
    layer = _layer(files)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": user, "Entrypoint": list(entrypoint), "Env": [_PATH]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [],
    }
    encoded = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest: list[dict[str, Any]] = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        _add(tar, config_name, encoded)
        _add(tar, "layer.tar", layer)
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def write_pause_image(path: Path) -> None:
    """Write the image of the pod sandbox: a program that waits forever."""
    write_image(path, PAUSE_IMAGE, {"pause": pause_program()}, entrypoint=["/pause"], user="65535")


def pause_program() -> bytes:
    """An x86-64 ELF executable of 129 bytes that calls pause(2) forever."""
    code = bytes.fromhex(
        "b822000000"  # again: mov eax, 34 (pause)
        "0f05"  #              syscall
        "ebf7"  #              jmp again
    )
    base, header_bytes, segment_bytes = 0x400000, 64, 56
    entry = base + header_bytes + segment_bytes
    size = header_bytes + segment_bytes + len(code)
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", identity, 2, 62, 1, entry, header_bytes, 0, 0, header_bytes, segment_bytes, 1, 0, 0, 0
    )
    # One loadable segment, readable and executable: the whole file.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return header + segment + code


def _layer(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("tmp", "dev", "proc", "sys", "etc"):
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(member)
        for name, content in sorted(files.items()):
            _add(tar, name, content, mode=0o755)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))
