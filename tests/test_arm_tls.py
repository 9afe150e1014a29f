"""Pictures over https: from the address that was checked, by the name that was asked for, or not at all."""

from __future__ import annotations

import io
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.checkpoint import Checkpoint
from engines.export import export
from serve.arm import fetch as module
from serve.arm.errors import ApiError
from serve.arm.fetch import public
from tests.live_arm import live_arm
from tests.test_arm_fetch import get, resolver, serving
from tests.test_arm_server import chat

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
NAME = "pictures.example"


def certify(folder: Path, *options: str) -> Path:
    """A key and a certificate, in one file."""
    folder.mkdir(exist_ok=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"]
    command = ["openssl", "req", "-x509", *key, "-out", "cert.pem", "-days", "2", *options]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the test's authority, of sites it vouches for, and of one that vouches for itself."""
    folder = tmp_path_factory.mktemp("tls")
    may_sign = ["-addext", "keyUsage=critical,keyCertSign"]  # Python 3.13 asks an authority for it
    found = {"authority": certify(folder / "authority", "-subj", "/CN=tests", *may_sign)}
    signed = ["-CA", str(found["authority"]), "-CAkey", str(found["authority"])]
    plain = ["-addext", "basicConstraints=CA:FALSE", "-subj", "/CN=site"]
    for name in (NAME, "other.example", "localhost"):
        alternative = f"subjectAltName=DNS:{name}"
        found[name] = certify(folder / name, *signed, *plain, "-addext", alternative)
    found["self-signed"] = certify(
        folder / "self", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"
    )
    return found


@pytest.fixture(autouse=True)
def trusting(certificates: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test's authority is known, and its machine is taken for one of the open internet."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates["authority"]))
    monkeypatch.setattr(module, "public", lambda address: address == "127.0.0.1" or public(address))
    module._trust.cache_clear()
    yield
    module._trust.cache_clear()


def context(certificate: Path, asked: list[str | None] | None = None) -> ssl.SSLContext:
    """A server's; `asked` gets the names that clients ask for before they see a certificate (SNI)."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(certificate)
    if asked is not None:
        found.sni_callback = lambda _, name, __: asked.append(name)
    return found


def url(site: HTTPServer, path: str = "/picture", name: str = NAME) -> str:
    return f"https://{name}:{site.server_address[1]}{path}"


def test_the_name_is_asked_for_and_the_checked_address_is_asked(
    certificates: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that changes its mind (DNS rebinding) is not asked again."""
    names: list[str | None] = []
    answers = [["127.0.0.1"], ["10.0.0.7"]]
    resolver(monkeypatch, answers)
    with serving(context(certificates[NAME], names)) as site:
        assert get(url(site), allow_private=False) == b"x" * 100
        assert site.hosts == [f"{NAME}:{site.server_address[1]}"]  # type: ignore[attr-defined]
    assert names == [NAME]
    assert answers == [["10.0.0.7"]]


@pytest.mark.parametrize("wrong", ["other.example", "self-signed"])
def test_a_wrong_certificate_is_not_trusted(
    certificates: dict[str, Path], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver(monkeypatch, [["127.0.0.1"]])
    with serving(context(certificates[wrong])) as site:
        with pytest.raises(ApiError, match="certificate cannot be trusted") as caught:
            get(url(site))
        assert caught.value.status == 400
        assert site.asked == []  # type: ignore[attr-defined]


def test_an_unknown_authority_is_not_trusted(
    certificates: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    resolver(monkeypatch, [["127.0.0.1"]])
    with serving(context(certificates[NAME])) as site, pytest.raises(ApiError, match="cannot be trusted"):
        get(url(site))


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("https://127.0.0.2/", "127.0.0.2"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254"),
        ("https://internal.example/", "10.0.0.7"),
        (f"https://{NAME}/", "10.0.0.7"),  # the name that was public a moment ago
    ],
)
def test_a_redirect_leads_nowhere_private(
    certificates: dict[str, Path], target: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [["127.0.0.1"], [address]]
    resolver(monkeypatch, answers)
    with serving(context(certificates[NAME])) as site:
        with pytest.raises(ApiError, match="not public"):
            get(url(site, f"/to/{target}"), allow_private=False)
        assert site.asked == [f"/to/{target}"]  # type: ignore[attr-defined]
    assert answers == []


def test_an_arm_sees_a_picture_over_https(
    certificates: dict[str, Path], micro_checkpoint: Path, tmp_path: Path
) -> None:
    export(Checkpoint.open(micro_checkpoint), tmp_path / "micro")
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)).save(stream, "PNG")
    authority = {"SSL_CERT_FILE": str(certificates["authority"])}
    with serving(context(certificates["localhost"]), stream.getvalue()) as site:
        part = {"type": "image_url", "image_url": {"url": url(site, name="localhost")}}
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "How many?"}]}]
        with live_arm(tmp_path / "micro", "--context=256", "--allow-private-urls", **authority) as arm:
            assert chat(arm, messages=messages).json()["usage"]["prompt_tokens"] > 12  # 64 x 48 pixels
        assert site.asked == ["/picture"]  # type: ignore[attr-defined]
        with live_arm(tmp_path / "micro", "--context=256", **authority) as arm:
            refused = chat(arm, messages=messages)
        assert refused.status_code == 400
        assert "not public" in refused.json()["error"]["message"]
        assert site.asked == ["/picture"]  # type: ignore[attr-defined]
