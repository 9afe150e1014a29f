"""A stand-in for Sigstore on loopback: a certificate authority, its two logs and an OIDC provider in one.

It signs and logs as Fulcio and Rekor do, in their formats, under roots of its own; it believes every token.
No more than that is shown with it: nothing here has spoken to the public Sigstore.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from tests.http_server import answering

ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # Fulcio's: whose token it was
SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")  # RFC 6962
Json = dict[str, Any]


def token(identity: str, issuer: str, seconds: int = 600) -> str:
    """What a CI's provider would hand out; nobody checks its signature here."""
    now = int(time.time())
    claims = {"iss": issuer, "sub": identity, "aud": "sigstore", "iat": now, "exp": now + seconds}
    return jwt.encode(claims, "no secret, since nobody checks it here", algorithm="HS256")


def _der(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Keys:
    """One key for the authority, one for each log."""

    def __init__(self) -> None:
        self.root, self.certificates, self.entries = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(3)
        )
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, self.root.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
        self.subject = x509.SubjectKeyIdentifier.from_public_key(self.root.public_key())
        self.name = name
        self.authority = builder.add_extension(self.subject, critical=False).sign(self.root, SHA256())

    def trust_config(self, url: str) -> Json:
        """Whom clients are to ask and to trust (sigstore's protobuf-specs: ClientTrustConfig)."""
        since = {"start": "2020-01-01T00:00:00Z"}
        service = {"url": url, "majorApiVersion": 1, "validFor": since, "operator": "stand-in"}

        def log(key: ec.EllipticCurvePrivateKey) -> Json:
            der = _der(key.public_key())
            public = {"rawBytes": _base64(der), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            identifier = {"keyId": _base64(hashlib.sha256(der).digest())}
            return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": identifier}

        root = _base64(self.authority.public_bytes(Encoding.DER))
        authority = {
            "subject": {"organization": "stand-in", "commonName": "stand-in"},
            "uri": url,
            "certChain": {"certificates": [{"rawBytes": root}]},
            "validFor": since,
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.entries)],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self.certificates)],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [service],
                "rekorTlogUrls": [service],
                "rekorTlogConfig": {"selector": "ANY"},
            },
        }

    def certify(self, request: x509.CertificateSigningRequest, claims: Json) -> x509.Certificate:
        """For ten minutes; with a timestamp by the log of certificates, as RFC 6962 has it."""
        now = datetime.now(UTC)
        key, identity = request.public_key(), str(claims["sub"])
        serial, nobody = x509.random_serial_number(), x509.Name([])
        builder = x509.CertificateBuilder(self.name, nobody, key, serial)
        builder = builder.not_valid_before(now - timedelta(seconds=5)).not_valid_after(
            now + timedelta(minutes=10)
        )
        kind = x509.UniformResourceIdentifier if "://" in identity else x509.RFC822Name
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self.subject)
        for extension, critical in (
            (x509.SubjectAlternativeName([kind(identity)]), True),
            (usage, True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
            (authority, False),
            (x509.UnrecognizedExtension(ISSUER, claims["iss"].encode()), False),
        ):
            builder = builder.add_extension(extension, critical)
        before = builder.sign(self.root, SHA256()).tbs_certificate_bytes
        stamp = x509.UnrecognizedExtension(SCT_LIST, self._timestamp(before))
        return builder.add_extension(stamp, critical=False).sign(self.root, SHA256())

    def _timestamp(self, certificate: bytes) -> bytes:
        """A list of one SignedCertificateTimestamp (RFC 6962, 3.2 and 3.3)."""
        log = hashlib.sha256(_der(self.certificates.public_key())).digest()
        authority = hashlib.sha256(_der(self.root.public_key())).digest()
        when = struct.pack("!Q", int(time.time() * 1000))
        entry = authority + len(certificate).to_bytes(3, "big") + certificate
        signature = self.certificates.sign(b"\0\0" + when + b"\0\1" + entry + b"\0\0", ec.ECDSA(SHA256()))
        stamp = b"\0" + log + when + b"\0\0" + b"\4\3" + struct.pack("!H", len(signature)) + signature
        listed = struct.pack("!HH", len(stamp) + 2, len(stamp)) + stamp
        return bytes([0x04, len(listed)]) + listed  # an OCTET STRING of less than 128 bytes

    def enter(self, proposed: Json) -> Json:
        """An entry of the log of signatures, which has no other (Rekor's API, version 1)."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        hashes = {
            "envelopeHash": hashlib.sha256(content["envelope"].encode()).hexdigest(),
            "payloadHash": hashlib.sha256(base64.b64decode(envelope["payload"])).hexdigest(),
        }
        (verifier,) = content["verifiers"]
        signatures = [{"signature": s["sig"], "verifier": verifier} for s in envelope["signatures"]]
        spec = {name: {"algorithm": "sha256", "value": value} for name, value in hashes.items()}
        spec |= {"signatures": signatures}
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        leaf = hashlib.sha256(b"\0" + body).digest()  # RFC 6962: a tree of one leaf
        log = hashlib.sha256(_der(self.entries.public_key())).digest()
        entry: Json = {"body": _base64(body), "integratedTime": int(time.time())}
        entry |= {"logID": log.hex(), "logIndex": 0}
        note = f"stand-in - 1\n1\n{_base64(leaf)}\n"
        signed = self.entries.sign(note.encode(), ec.ECDSA(SHA256()))
        proof = {"checkpoint": f"{note}\n— stand-in {_base64(log[:4] + signed)}\n", "hashes": []}
        proof |= {"logIndex": 0, "rootHash": leaf.hex(), "treeSize": 1}
        promise = self.entries.sign(rfc8785.dumps(entry), ec.ECDSA(SHA256()))
        verification = {"inclusionProof": proof, "signedEntryTimestamp": _base64(promise)}
        return {leaf.hex(): entry | {"verification": verification}}


def _handler(keys: Keys) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = f"http://{self.headers['host']}"
            self._answer({"authorization_endpoint": where, "token_endpoint": where})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/api/v1/log/entries":
                self._answer(keys.enter(asked))
                return
            claims = jwt.decode(
                self.headers["authorization"].removeprefix("Bearer "), options={"verify_signature": False}
            )
            request = x509.load_pem_x509_csr(base64.b64decode(asked["certificateSigningRequest"]))
            chain = [keys.certify(request, claims), keys.authority]
            texts = [certificate.public_bytes(Encoding.PEM).decode() for certificate in chain]
            self._answer({"signedCertificateEmbeddedSct": {"chain": {"certificates": texts}}})

        def _answer(self, document: Json) -> None:
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: the tests' output is the tests'."""

    return Handler


@contextmanager
def sigstore() -> Iterator[Json]:
    """The trust config of a stand-in that runs meanwhile."""
    keys = Keys()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(keys))
    with answering(server):
        yield keys.trust_config(f"http://127.0.0.1:{server.server_port}")
