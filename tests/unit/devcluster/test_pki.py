from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from uellm_devcluster import pki


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pki")
    pki.write_cluster(made, server="https://10.0.0.1:6443", addresses=["10.0.0.1", "127.0.0.1"], nodes=["node-1"])
    return made


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def client_certificate(path: Path) -> x509.Certificate:
    user = yaml.safe_load(path.read_text())["users"][0]["user"]
    return certificate(base64.b64decode(user["client-certificate-data"]))


def test_the_server_is_trusted_at_its_addresses_and_names(directory: Path) -> None:
    store = Store([certificate((directory / "ca.crt").read_bytes())])
    server = certificate((directory / "apiserver.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {"10.0.0.1", "127.0.0.1"}
    subject = x509.DNSName("kubernetes.default.svc")
    assert PolicyBuilder().store(store).build_server_verifier(subject).verify(server, [])


def test_a_nodes_certificate_has_the_name_that_the_node_authorizer_expects(directory: Path) -> None:
    subject = client_certificate(directory / "node-1.kubeconfig").subject
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:node-1"
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"


def test_clients_are_signed_by_the_authority_for_clients_alone(directory: Path) -> None:
    authority = certificate((directory / "ca.crt").read_bytes())
    for name in ("admin", "controller-manager", "scheduler", "proxy", "kwok", "node-1"):
        client = client_certificate(directory / f"{name}.kubeconfig")
        usage = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
        client.verify_directly_issued_by(authority)


def test_keys_fit_their_certificates(directory: Path) -> None:
    for name in ("ca", "apiserver", "kubelet-client"):
        key = load_pem_private_key((directory / f"{name}.key").read_bytes(), None)
        assert key.public_key() == certificate((directory / f"{name}.crt").read_bytes()).public_key()


def test_nobody_else_reads_them(directory: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_the_same_kubeconfig_for_another_address(directory: Path) -> None:
    original = (directory / "admin.kubeconfig").read_text()
    changed = yaml.safe_load(pki.with_server(original, "https://127.0.0.1:1"))
    assert changed["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    assert changed["users"] == yaml.safe_load(original)["users"]
