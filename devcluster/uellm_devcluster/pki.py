"""The cluster's certificates and kubeconfigs: one authority and elliptic-curve keys, created in milliseconds."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = datetime.timedelta(days=365)
# The clocks of a host and its guests may differ slightly.
_LEEWAY = datetime.timedelta(hours=1)
KUBELET_CLIENT = "kube-apiserver-kubelet-client"
"""The name in the API server's own certificate as a client."""
_SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, name: str) -> None:
        """Write `<name>.crt` and `<name>.key`."""
        write_private(directory / f"{name}.crt", self.certificate)
        write_private(directory / f"{name}.key", self.key)


class Authority:
    """A certificate authority that exists as long as one cluster."""

    def __init__(self, common_name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(common_name)
        self._certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(self._identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pair(self) -> Pair:
        """The authority's own certificate and key."""
        return Pair(self._certificate.public_bytes(serialization.Encoding.PEM), _pem(self._key))

    def client(self, common_name: str, group: str = "") -> Pair:
        """A client's certificate: Kubernetes reads the user from the common name, the group from the organisation."""
        return self._issue(_name(common_name, group), ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def server(self, common_name: str, *, names: list[str], addresses: list[str]) -> Pair:
        """A server's certificate, valid for these DNS names and addresses."""
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        return self._issue(
            _name(common_name), ExtendedKeyUsageOID.SERVER_AUTH, x509.SubjectAlternativeName(alternatives)
        )

    def _identifier(self) -> x509.SubjectKeyIdentifier:
        return x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())

    def _issue(
        self, subject: x509.Name, purpose: x509.ObjectIdentifier, alternatives: x509.SubjectAlternativeName | None
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, self._name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            # Strict verifiers (Python's from 3.13 on) require the issuer's key identifier.
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier()), critical=False
            )
        )
        if alternatives:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Pair(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))


def write_cluster(directory: Path, *, server: str, addresses: list[str], nodes: list[str]) -> None:
    """Write all credentials that a control plane and `nodes` need to trust one another.

    `server` is the address that the components use; `addresses` are those that clients may use. Kubeconfigs are
    `<name>.kubeconfig` for admin, controller-manager, scheduler, proxy, kwok and each node.
    """
    authority = Authority("uellm-devcluster")
    authority.pair.write(directory, "ca")
    authority.server("kube-apiserver", names=[*_SERVICE_NAMES, "localhost"], addresses=addresses).write(
        directory, "apiserver"
    )
    authority.client(KUBELET_CLIENT, "system:masters").write(directory, "kubelet-client")
    _write_service_account_keys(directory)
    users = {
        "admin": ("admin", "system:masters"),
        "controller-manager": ("system:kube-controller-manager", ""),
        "scheduler": ("system:kube-scheduler", ""),
        "proxy": ("system:kube-proxy", "system:node-proxier"),
        # kwok acts for many nodes at once, which the node authorizer does not allow.
        "kwok": ("kwok", "system:masters"),
    } | {node: (f"system:node:{node}", "system:nodes") for node in nodes}
    for name, (user, group) in users.items():
        document = kubeconfig(server, authority.pair.certificate, authority.client(user, group))
        write_private(directory / f"{name}.kubeconfig", document.encode())


def kubeconfig(server: str, authority_certificate: bytes, client: Pair) -> str:
    """A self-contained kubeconfig, so that the file can be copied."""
    encoded = {
        name: base64.b64encode(value).decode()
        for name, value in (("ca", authority_certificate), ("crt", client.certificate), ("key", client.key))
    }
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "uellm", "cluster": {"server": server, "certificate-authority-data": encoded["ca"]}}],
            "users": [
                {
                    "name": "admin",
                    "user": {"client-certificate-data": encoded["crt"], "client-key-data": encoded["key"]},
                }
            ],
            "contexts": [{"name": "uellm", "context": {"cluster": "uellm", "user": "admin"}}],
            "current-context": "uellm",
        },
        sort_keys=False,
    )


def with_server(document: str, server: str) -> str:
    """The same kubeconfig with another address of the API server."""
    config = yaml.safe_load(document)
    for cluster in config["clusters"]:
        cluster["cluster"]["server"] = server
    return yaml.safe_dump(config, sort_keys=False)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as handle:
        handle.write(content)


def _write_service_account_keys(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_private(directory / "service-account.key", _pem(key))
    write_private(directory / "service-account.pub", public)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + _LIFETIME)
    )


def _name(common_name: str, organisation: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organisation:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name(parts)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
