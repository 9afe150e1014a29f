"""Publishing to a real registry and pulling from it: what arrives is what left, or one line says why not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from build.__main__ import main
from build.publish import published as published_below
from build.publish import verify
from build.release import download
from build.release.progress import transfers
from build.release.reference import Reference
from build.release.registry import Registry, fallback_tag
from build.release.upload import Sessions, upload_blob
from engines.artifact import Manifest
from engines.errors import UserError
from tests.oci_registry import PASSWORDS, blob_file, oci_registry, program
from tests.published import publish_variant

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(storage: Path) -> Iterator[str]:
    with oci_registry(storage) as host:
        yield host


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours.pem with ours.pub, and theirs."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command that succeeds; its JSON."""

    def call(*words: object) -> dict[str, Any]:
        code = main([str(word) for word in (*words, "--json")])
        said = capsys.readouterr()
        assert code == 0, said.err
        return dict(json.loads(said.out.splitlines()[-1]))

    return call


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_pulled_is_what_was_published(tmp_path: Path, registry: str, keys: Path, run: Run) -> None:
    artifact = publish_variant(tmp_path / "here", "gptq-int4-onnx")
    row, *_ = run("publish", artifact, "--to", f"oci://{registry}/team/qwen", "--key", keys / "ours.pem")[
        "published"
    ]
    assert row["reference"] == f"oci://{registry}/team/qwen@{row['digest']}"
    assert row["sent_bytes"] == row["bytes"]
    pulled = run("pull", row["reference"], "--out", tmp_path / "there", "--key", keys / "ours.pub")
    folder = Path(pulled["path"])
    assert folder == tmp_path / "there" / "qwen3-vl-micro" / "gptq-int4-onnx"
    ours, theirs = everything(artifact), everything(folder)
    assert {name: theirs[name] for name in ours if name != "manifest.json"} == {
        name: content for name, content in ours.items() if name != "manifest.json"
    }
    assert {name for name in theirs if name not in ours} == {
        "README.md",
        "attestations/model.sig",
        "attestations/provenance.intoto.json",
        "attestations/sbom.cdx.json",
    }
    assert Manifest.read(folder).digest == Manifest.read(artifact).digest
    assert verify(folder) == []
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["qwen3-vl-micro"]
    by_tag = run(
        "pull", f"oci://{registry}/team/qwen:gptq-int4-onnx", "--out", tmp_path / "again", "--unsigned"
    )
    assert by_tag["digest"] == row["digest"]
    chosen = run("select", "--catalogue", tmp_path / "there", "--device", "cpu")
    assert chosen["choice"] == "gptq-int4-onnx"


def test_another_client_pulls_it(tmp_path: Path, registry: str, keys: Path, run: Run) -> None:
    """skopeo copies the manifest, its config and every layer to a folder of blobs."""
    artifact = publish_variant(tmp_path, "onnx-fp16", seed=1)
    row, *_ = run("publish", artifact, "--to", f"oci://{registry}/other:v1")["published"]
    copied = tmp_path / "copied"
    source = f"docker://{registry}/other@{row['digest']}"
    line = [program("skopeo"), "copy", "--src-tls-verify=false", source, f"dir:{copied}"]
    subprocess.run(line, check=True, capture_output=True, timeout=60)
    manifest = json.loads((copied / "manifest.json").read_bytes())
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    for layer in manifest["layers"]:
        path = layer["annotations"]["org.cncf.model.filepath"]
        content = (copied / layer["digest"].removeprefix("sha256:")).read_bytes()
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer["digest"]
        if path not in ("manifest.json", "README.md"):
            assert content == (artifact / path).read_bytes()
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]
    }
    assert kinds["decoder.onnx.data"] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["config.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    assert kinds["README.md"] == "application/vnd.cncf.model.doc.v1.raw"
    config = json.loads((copied / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert (config["descriptor"]["licenses"], config["config"]["quantization"]) == (["apache-2.0"], "gptq")


def test_what_vouches_for_it_is_found_by_its_digest(
    tmp_path: Path, registry: str, keys: Path, run: Run
) -> None:
    artifact = publish_variant(tmp_path, "awq-int4-onnx", seed=2)
    to = ("--to", f"oci://{registry}/attached:v1", "--key", keys / "ours.pem")
    digest = run("publish", artifact, *to)["published"][0]["digest"]
    manifests = f"http://{registry}/v2/attached/manifests"
    accept = {"accept": "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"}
    index = httpx2.get(f"{manifests}/{fallback_tag(digest)}", headers=accept).json()
    assert {entry["artifactType"] for entry in index["manifests"]} == {
        "application/vnd.dev.sigstore.bundle.v0.3+json",
        "application/vnd.cyclonedx+json",
        "application/vnd.in-toto+json",
        "application/vnd.qwen3-vl-variants.gate.v1+json",
        "application/vnd.qwen3-vl-variants.observations.v1+jsonl",
    }
    for entry in index["manifests"]:
        manifest = httpx2.get(f"{manifests}/{entry['digest']}", headers=accept).json()
        assert manifest["subject"]["digest"] == digest
    again = run("publish", artifact, *to)["published"][0]
    assert again["digest"] == digest
    signature = 10_000  # a new one each time, and nothing else
    assert again["sent_bytes"] < signature < again["bytes"]


def test_identical_content_is_sent_once(tmp_path: Path, registry: str, run: Run) -> None:
    first = publish_variant(tmp_path, "gptq-int4-onnx", seed=3)
    second = publish_variant(tmp_path, "gptq-int4-onnx-kv8", seed=3)  # the same weights
    rows = run("publish", first, second, "--to", f"oci://{registry}/once")["published"]
    assert [row["variant"] for row in rows] == ["gptq-int4-onnx", "gptq-int4-onnx-kv8"]
    assert rows[0]["sent_bytes"] == rows[0]["bytes"]
    assert rows[1]["sent_bytes"] < rows[1]["bytes"] - 300_000
    assert not (tmp_path / "qwen3-vl-micro" / ".gptq-int4-onnx.uploads.json").exists()


def test_content_of_another_repository_is_mounted(
    tmp_path: Path, registry: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = publish_variant(tmp_path, "gptq-int4-onnx", seed=6)
    first, second = (
        run("publish", artifact, "--to", f"oci://{registry}/{name}")["published"][0]
        for name in ("from", "to")
    )
    assert first["sent_bytes"] == first["bytes"]
    assert (second["sent_bytes"], second["digest"]) == (0, first["digest"])
    pulled = run("pull", second["reference"], "--out", tmp_path / "there", "--unsigned")
    assert verify(Path(pulled["path"])) == []
    (tmp_path / "qwen3-vl-micro" / ".published.json").write_text("{")  # what is lost costs bytes only
    third = run("publish", artifact, "--to", f"oci://{registry}/third")["published"][0]
    assert third["sent_bytes"] == third["bytes"]


class Flaky(httpx2.HTTPTransport):
    """A connection that is lost before the requests of some numbers, counted from 1."""

    def __init__(self, method: str, lost: set[int]) -> None:
        super().__init__()
        self.method, self.lost, self.count = method, lost, 0
        self.sent = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == self.method:
            self.count += 1
            if self.count in self.lost:
                raise httpx2.ReadError("connection reset")
            self.sent += len(request.content)
        return super().handle_request(request)


def test_an_upload_goes_on_where_it_was_lost(tmp_path: Path, registry: str) -> None:
    data = tmp_path / "weights.bin"
    data.write_bytes(bytes(range(250)) * 4000)
    digest = f"sha256:{hashlib.sha256(data.read_bytes()).hexdigest()}"
    sessions = tmp_path / "uploads.json"
    transport = Flaky("PATCH", {3, 4, 5, 6, 7})
    with Registry(Reference.parse(f"oci://{registry}/resumed"), transport) as lossy:
        lossy.pause = lambda seconds: None
        with pytest.raises(
            UserError, match=r"weights.bin: lost at 200,000 of 1,000,000 bytes .connection reset"
        ):
            upload_blob(lossy, digest, data, Sessions(sessions), chunk=100_000)
    assert transport.sent == 200_000
    with Registry(Reference.parse(f"oci://{registry}/resumed")) as steady:  # as another run does
        assert upload_blob(steady, digest, data, Sessions(sessions), chunk=100_000) == 800_000
        assert steady.has_blob(digest)
        assert upload_blob(steady, digest, data, Sessions(sessions), chunk=100_000) == 0
    assert not sessions.exists()


def test_how_far_a_transfer_is_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("build.release.progress.LINE_EVERY_S", 0.0)
    with transfers("upload a", 4_000_000) as report:
        report("sha256:1", 1_000_000)
        report("sha256:2", 500_000)
        report("sha256:1", 3_000_000)
    told = capsys.readouterr().err.splitlines()
    assert told == [f"upload a: {done} of 4 MB" for done in ("1 MB", "1.5 MB", "3.5 MB")]


def test_a_session_that_the_registry_forgot_begins_again(tmp_path: Path, registry: str) -> None:
    digest = f"sha256:{hashlib.sha256(b'some content').hexdigest()}"
    sessions = Sessions(tmp_path / "uploads.json")
    gone = f"http://{registry}/v2/forgot/blobs/uploads/8d5f8b43-0000-4000-8000-000000000000?_state=x"
    with Registry(Reference.parse(f"oci://{registry}/forgot")) as steady:
        sessions.keep(steady.url(f"blobs/{digest}"), gone)
        assert upload_blob(steady, digest, b"some content", sessions, chunk=5) == 12


@pytest.fixture
def published(tmp_path: Path, registry: str, keys: Path, run: Run) -> str:
    """The reference of a signed variant."""
    name = f"pull-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    artifact = publish_variant(tmp_path / "here", "gptq-int4-onnx", seed=hash(name))
    to = ("--to", f"oci://{registry}/{name}", "--key", keys / "ours.pem")
    return str(run("publish", artifact, *to)["published"][0]["reference"])


def layer_of(reference: str, path: str) -> str:
    """Digest of a file's layer."""
    with Registry(Reference.parse(reference)) as client:
        found = client.manifest(Reference.parse(reference).last)
    assert found
    layers = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["digest"] for layer in found[1]["layers"]
    }
    return str(layers[path])


def test_a_tampered_layer_is_not_installed(
    published: str, storage: Path, tmp_path: Path, keys: Path, refused: Callable[..., str], run: Run
) -> None:
    blob = blob_file(storage, layer_of(published, "decoder.onnx.data"))
    whole = blob.read_bytes()
    blob.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    pull = ("pull", published, "--out", tmp_path / "out", "--key", keys / "ours.pub")
    line = refused(*pull)
    assert "decoder.onnx.data: what the registry sent is not what its digest says" in line
    assert "nothing was installed" in line
    assert not published_below(tmp_path / "out")
    blob.write_bytes(whole)
    assert verify(Path(run(*pull)["path"])) == []


def test_a_truncated_download_goes_on(
    published: str,
    storage: Path,
    tmp_path: Path,
    keys: Path,
    refused: Callable[..., str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blob = blob_file(storage, layer_of(published, "decoder.onnx.data"))
    whole = blob.read_bytes()
    blob.write_bytes(whole[:120_000])
    monkeypatch.setattr(download, "TRIES", 1)
    pull = ("pull", published, "--out", tmp_path / "out", "--key", keys / "ours.pub")
    line = refused(*pull)
    assert "decoder.onnx.data: truncated at 120,000 of 300,000 bytes" in line
    assert "run it again to go on" in line
    assert not published_below(tmp_path / "out")
    blob.write_bytes(b"\0" * 120_000 + whole[120_000:])  # only the rest is asked for again
    assert verify(Path(run(*pull)["path"])) == []


def test_who_signed_it_is_checked(
    published: str, registry: str, tmp_path: Path, keys: Path, refused: Callable[..., str], run: Run
) -> None:
    out = ("--out", tmp_path / "out")
    line = refused("pull", published, *out, "--key", keys / "theirs.pub")
    assert f"not signed by {keys / 'theirs.pub'}" in line
    assert not (tmp_path / "out" / "qwen3-vl-micro" / "gptq-int4-onnx").exists()
    assert "or --identity WHO --issuer URL, or --unsigned" in refused("pull", published, *out)
    assert "expected a PEM file with a PUBLIC KEY" in refused(
        "pull", published, *out, "--key", keys / "ours.pem"
    )
    assert "No such file" in refused("pull", published, *out, "--key", tmp_path / "none")
    artifact = publish_variant(tmp_path / "unsigned", "onnx-fp16", seed=4)
    bare = run("publish", artifact, "--to", f"oci://{registry}/unsigned:v1")["published"][0]["reference"]
    assert "it has no signature; expected one by" in refused("pull", bare, *out, "--key", keys / "ours.pub")
    assert run("pull", bare, *out, "--unsigned")["signed"] is False


def test_a_signature_of_another_artifact_does_not_count(
    published: str, registry: str, tmp_path: Path, keys: Path, refused: Callable[..., str], run: Run
) -> None:
    """Attached by somebody who may write to the registry but has no key."""
    artifact = publish_variant(tmp_path / "evil", "gptq-int4-onnx", seed=5)
    name = Reference.parse(published).repository
    bare = run("publish", artifact, "--to", f"oci://{registry}/{name}:evil")["published"][0]["reference"]
    with Registry(Reference.parse(published)) as client:
        genuine = next(
            entry
            for entry in client.referrers(Reference.parse(published).last)
            if "sigstore" in entry["artifactType"]
        )
        found, target = client.manifest(genuine["digest"]), client.manifest(Reference.parse(bare).last)
        assert found
        assert target
        subject = {"digest": Reference.parse(bare).digest, "size": len(target[0])}
        forged = found[1] | {"subject": found[1]["subject"] | subject}
        client.put_manifest("forged", forged)
    line = refused("pull", bare, "--out", tmp_path / "out", "--key", keys / "ours.pub")
    assert "or changed since (Signature mismatch" in line


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "", "a/../../b"])
def test_no_layer_leaves_its_folder(
    published: str, tmp_path: Path, refused: Callable[..., str], path: str
) -> None:
    with Registry(Reference.parse(published)) as client:
        found = client.manifest(Reference.parse(published).last)
        assert found
        found[1]["layers"][0]["annotations"]["org.cncf.model.filepath"] = path
        digest = client.put_manifest("escape", found[1])
    line = refused("pull", Reference.parse(published).at(digest), "--out", tmp_path / "out", "--unsigned")
    assert "is not one of ours" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_is_a_catalogue(tmp_path: Path, keys: Path, run: Run, refused: Callable[..., str]) -> None:
    artifact = publish_variant(tmp_path / "here", "gptq-int4-onnx")
    shelf = tmp_path / "shelf"
    row, *_ = run("publish", artifact, "--to", shelf, "--key", keys / "ours.pem")["published"]
    assert row["reference"] == str(shelf / "qwen3-vl-micro" / "gptq-int4-onnx")
    assert verify(Path(row["reference"])) == []
    assert run("select", "--catalogue", shelf, "--device", "cpu")["choice"] == "gptq-int4-onnx"
    # As docs/deploy.md says: whoever pulls needs no more than the signing project's own program.
    model, signature = row["reference"], f"{row['reference']}/attestations/model.sig"
    line = [sys.executable, "-m", "model_signing", "verify", "key", model, "--signature", signature]
    line += ["--public_key", str(keys / "ours.pub"), "--ignore-paths", signature]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert "Verification succeeded" in done.stdout, done.stderr
    assert "choose another folder" in refused("publish", row["reference"], "--to", shelf)


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("oci://127.0.0.1:1/repo", "is a registry there?"),
        ("oci://127.0.0.1/Upper", "expected oci://HOST/REPOSITORY"),
        ("oci://127.0.0.1/repo@sha256:" + "0" * 64, "give a tag, or none"),
        ("hf://nobody", "expected hf://OWNER/NAME"),
    ],
)
def test_addresses_that_lead_nowhere(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, to: str, told: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    artifact = publish_variant(tmp_path, "gptq-int4-onnx")
    assert told in refused("publish", artifact, "--to", to)
    assert not (artifact.parent / ".gptq-int4-onnx.release").exists()


def test_what_did_not_pass_stays(tmp_path: Path, refused: Callable[..., str], run: Run) -> None:
    failed = publish_variant(tmp_path / "a", "gptq-int4-onnx", verdict="FAIL")
    assert "is not published: gate FAIL: accuracy" in refused("publish", failed, "--to", tmp_path / "shelf")
    assert not (tmp_path / "shelf" / "qwen3-vl-micro" / "gptq-int4-onnx").exists()
    waiver = {"check": "accuracy", "reason": "for a demo", "expires": "2999-01-01"}
    waived = publish_variant(tmp_path / "b", "gptq-int4-onnx", waivers=[waiver])
    path = Path(run("publish", waived, "--to", tmp_path / "shelf")["published"][0]["reference"])
    card = (path / "README.md").read_text()
    assert "The gate did **not** ask this variant to pass" in card
    assert "- **accuracy** is waived until 2999-01-01: for a demo" in card
    damaged = publish_variant(tmp_path / "c", "gptq-int4-onnx")
    (damaged / "config.json").write_text("{}")
    assert "config.json" in refused("publish", damaged, "--to", tmp_path / "shelf")


def test_a_registry_with_passwords(
    tmp_path: Path, refused: Callable[..., str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The login is the one that docker, oras and skopeo leave."""
    artifact = publish_variant(tmp_path / "here", "gptq-int4-onnx")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    passwords = tmp_path / "passwords"
    passwords.write_text(PASSWORDS)
    auth = f"auth: {{htpasswd: {{realm: ours, path: {passwords}}}}}\n"
    (tmp_path / "registry").mkdir()
    with oci_registry(tmp_path / "registry", auth) as host:
        to = ("--to", f"oci://{host}/private:v1")
        assert f"log in with `docker login {host}`" in refused("publish", artifact, *to)
        (tmp_path / ".docker").mkdir()
        login = {"auths": {host: {"username": "ann", "password": "sesame"}}}
        (tmp_path / ".docker" / "config.json").write_text(json.dumps(login))
        reference = run("publish", artifact, *to)["published"][0]["reference"]
        assert run("pull", reference, "--out", tmp_path / "out", "--unsigned")["signed"] is False
