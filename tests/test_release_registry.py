"""Registries that differ from the one in test_release.py: tokens, referrers of their own, overload."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from build.release.reference import Reference
from build.release.registry import INDEX, MANIFEST, Registry, canonical, digest_of
from build.release.upload import Sessions, upload_blob
from engines.errors import UserError
from tests.conftest import ROOT
from tests.oci_registry import oci_registry
from tests.published import publish_variant

HOST = "registry.example"
DIGEST = "sha256:" + "a" * 64


def client(answer: Callable[[httpx2.Request], httpx2.Response]) -> Registry:
    registry = Registry(Reference.parse(f"oci://{HOST}/team/qwen"), httpx2.MockTransport(answer))
    registry.pause = lambda seconds: None
    return registry


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("oci://h:5000/a/b:v1", ("h:5000", "a/b", "v1", None)),
        (f"oci://h/a@{DIGEST}", ("h", "a", None, DIGEST)),
        (f"oci://h/a:v1@{DIGEST}", ("h", "a", "v1", DIGEST)),
    ],
)
def test_addresses(text: str, parts: tuple[str, str, str | None, str | None]) -> None:
    found = Reference.parse(text)
    assert (found.host, found.repository, found.tag, found.digest) == parts


@pytest.mark.parametrize(
    "text", ["docker://h/a", "oci://h", "oci://h/A", "oci://h/a:", "oci://h/a@sha256:12"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match="expected oci://HOST/REPOSITORY"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("host", "scheme"), [("localhost:5000", "http"), ("127.0.0.1:1", "http"), ("ghcr.io", "https")]
)
def test_only_this_machine_is_spoken_to_in_the_clear(host: str, scheme: str) -> None:
    assert Reference.parse(f"oci://{host}/a").url == f"{scheme}://{host}/v2/a"


def test_a_token_is_fetched_with_the_stored_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """https://distribution.github.io/distribution/spec/auth/token/"""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(
        json.dumps({"auths": {HOST: {"auth": "YW5uOnNlc2FtZQ=="}}})
    )
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(f"{request.url.host} {request.headers.get('authorization')}")
        if request.url.host == "auth.example":
            assert dict(request.url.params) == {"service": "s", "scope": "repository:team/qwen:pull,push"}
            return httpx2.Response(200, json={"token": "t0"})
        if request.headers.get("authorization") == "Bearer t0":
            return httpx2.Response(200)
        scope = 'Bearer realm="https://auth.example/token",service="s",scope="repository:team/qwen:pull,push"'
        return httpx2.Response(401, headers={"www-authenticate": scope})

    with client(answer) as registry:
        assert registry.has_blob(DIGEST)
        assert registry.has_blob(DIGEST)
    assert asked == [
        f"{HOST} None",
        "auth.example Basic YW5uOnNlc2FtZQ==",
        f"{HOST} Bearer t0",
        f"{HOST} Bearer t0",  # kept for the next request
    ]


def test_a_mount_asks_for_a_token_of_both_repositories(tmp_path: Path) -> None:
    scopes: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "auth.example":
            scopes.extend(request.url.params.get_list("scope"))
            return httpx2.Response(200, json={"token": f"t{len(scopes)}"})
        if request.method == "HEAD":
            return httpx2.Response(404 if "/team/qwen/" in request.url.path else 200)
        if request.headers.get("authorization") == "Bearer t2":
            assert dict(request.url.params) == {"mount": DIGEST, "from": "team/other"}
            return httpx2.Response(201)
        scope = "repository:team/qwen:pull,push repository:team/other:pull"
        told = f'Bearer realm="https://auth.example/token",service="s",scope="{scope}"'
        return httpx2.Response(401, headers={"www-authenticate": told})

    with client(answer) as registry:
        sessions = Sessions(tmp_path / "uploads.json")
        assert upload_blob(registry, DIGEST, b"content", sessions, siblings=["team/other"]) == 0
    assert scopes == ["repository:team/qwen:pull,push", "repository:team/other:pull"]


@pytest.mark.parametrize("code", [401, 403, 404, 500])
def test_a_sibling_that_may_not_be_read_is_no_hindrance(tmp_path: Path, code: int) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "HEAD":
            return httpx2.Response(404 if "/team/qwen/" in request.url.path else code)
        if request.method == "POST":
            assert not request.url.params
            return httpx2.Response(202, headers={"location": "/upload"})
        return httpx2.Response(201)

    with client(answer) as registry:
        sessions = Sessions(tmp_path / "uploads.json")
        assert upload_blob(registry, DIGEST, b"content", sessions, siblings=["team/other"]) == 7


def attachment() -> dict[str, Any]:
    subject = {"mediaType": MANIFEST, "digest": DIGEST, "size": 1}
    return {"mediaType": MANIFEST, "artifactType": "application/x", "subject": subject, "layers": []}


def test_a_registry_that_lists_referrers_needs_no_tag() -> None:
    listed = [{"digest": DIGEST, "artifactType": "application/x"}]
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "PUT":
            return httpx2.Response(201, headers={"oci-subject": DIGEST})
        return httpx2.Response(200, json={"mediaType": INDEX, "manifests": listed})

    with client(answer) as registry:
        registry.put_manifest("v1", attachment())
        assert registry.referrers(DIGEST) == listed
    assert asked == ["PUT /v2/team/qwen/manifests/v1", f"GET /v2/team/qwen/referrers/{DIGEST}"]


def test_a_manifest_of_another_digest_is_refused() -> None:
    with (
        client(lambda request: httpx2.Response(200, json={"mediaType": MANIFEST})) as registry,
        pytest.raises(UserError, match="a manifest of another digest"),
    ):
        registry.manifest(DIGEST)


@pytest.mark.parametrize("content", [b"<html>", b"[]"])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with (
        client(lambda request: httpx2.Response(200, content=content)) as registry,
        pytest.raises(UserError, match="v1 is no manifest"),
    ):
        registry.manifest("v1")


def test_an_overloaded_registry_is_asked_again() -> None:
    codes = iter([503, 429, 200])
    with client(lambda request: httpx2.Response(next(codes))) as registry:
        assert registry.has_blob(DIGEST)
    with (
        client(lambda request: httpx2.Response(503, json={"errors": [{"message": "busy"}]})) as registry,
        pytest.raises(UserError, match="failed with 503: busy"),
    ):
        registry.put_manifest("v1", {"mediaType": MANIFEST})


def test_equal_documents_have_equal_digests() -> None:
    assert digest_of(canonical({"b": 1, "a": 2})) == digest_of(canonical({"a": 2, "b": 1}))


def test_a_machine_that_only_serves_can_pull(tmp_path: Path) -> None:
    """What a build and what signing needs beyond the serving set is hidden from it."""
    artifact = publish_variant(tmp_path / "here", "gptq-int4-onnx")
    (tmp_path / "registry").mkdir()
    with oci_registry(tmp_path / "registry") as host:
        line = [sys.executable, "-m", "build", "publish", str(artifact), "--to", f"oci://{host}/a:v1"]
        subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=60)
        script = (
            "import sys\nfor name in ('torch', 'transformers', 'rich', 'onnx', 'scipy', 'statsmodels',"
            " 'compressed_tensors', 'model_signing', 'cyclonedx', 'in_toto_attestation', 'cryptography'):"
            " sys.modules[name] = None\n"
            "from build.__main__ import main\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        pull = ["pull", f"oci://{host}/a:v1", "--out", str(tmp_path / "there"), "--unsigned"]
        done = subprocess.run(
            [sys.executable, "-c", script, *pull], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "qwen3-vl-micro" / "gptq-int4-onnx" / "manifest.json").is_file()
