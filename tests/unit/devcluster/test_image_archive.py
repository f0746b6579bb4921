from __future__ import annotations

import hashlib
import json
import platform
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from uellm_devcluster.archive import pause_program, write_image, write_pause_image


def test_an_image_names_its_layer_by_digest(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tar", "local/a:1", {"bin/a": b"#!"}, entrypoint=["/bin/a"], user="65532")
    with tarfile.open(tmp_path / "a.tar") as tar:
        manifest = json.load(tar.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        config_bytes = tar.extractfile(manifest["Config"]).read()  # type: ignore[union-attr]
        layer = tar.extractfile(manifest["Layers"][0]).read()  # type: ignore[union-attr]
    config = json.loads(config_bytes)
    assert manifest["RepoTags"] == ["local/a:1"]
    assert manifest["Config"] == hashlib.sha256(config_bytes).hexdigest() + ".json"
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    assert config["config"]["User"] == "65532"


def test_the_same_content_gives_the_same_image(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_pause_image(tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the program is x86-64 machine code")
def test_the_pause_program_waits_until_it_is_ended(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(pause_program())
    program.chmod(0o755)
    with subprocess.Popen([program]) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait() == -signal.SIGTERM
