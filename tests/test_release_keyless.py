"""Signing without a key, by Sigstore's own client, before a stand-in for Sigstore (sigstore_stand_in.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from build.__main__ import main
from build.release.keyless import Identity, Keyless
from build.release.signature import SIGNATURE, sign, verify
from engines.errors import UserError
from tests.oci_registry import oci_registry
from tests.published import publish_variant
from tests.sigstore_stand_in import sigstore, token

ISSUER = "https://token.actions.githubusercontent.com"
WORKFLOW = "https://github.com/team/qwen/.github/workflows/variants.yml@refs/heads/main"


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("trust") / "trust.json"
    with sigstore() as config:
        file.write_text(json.dumps(config))
        yield file


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of GitLab's, which finds its token in its environment."""
    nowhere(monkeypatch)
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", token(WORKFLOW, ISSUER))


def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI", "SIGSTORE_ID_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_from_a_job_to_who_pulls(
    job: None, trust: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = publish_variant(tmp_path / "here", "gptq-int4-onnx")
    (tmp_path / "registry").mkdir()

    def call(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    with oci_registry(tmp_path / "registry") as host:
        to = ("--to", f"oci://{host}/a", "--keyless", "--trust-config", trust, "--json")
        row = json.loads(call("publish", artifact, *to).splitlines()[-1])["published"][0]
        assert row["signed"]
        pull = ("pull", row["reference"], "--out", tmp_path / "there", "--trust-config", trust)
        other = "https://github.com/team/qwen/.github/workflows/variants.yml@refs/heads/other"
        told = call(*pull, "--issuer", ISSUER, "--identity", other, code=1)
        assert f"not signed by {other} by {ISSUER}" in told
        told = call(*pull, "--issuer", "https://gitlab.com", "--identity", WORKFLOW, code=1)
        assert f"not signed by {WORKFLOW} by https://gitlab.com" in told
        assert not (tmp_path / "there" / "qwen3-vl-micro" / "gptq-int4-onnx").exists()
        told = call(*pull, "--issuer", ISSUER, "--identity", WORKFLOW)
        assert f"signed by {WORKFLOW} by {ISSUER}" in told
    assert (tmp_path / "there" / "qwen3-vl-micro" / "gptq-int4-onnx" / SIGNATURE).is_file()


def test_what_was_changed_since_is_not_signed(job: None, trust: Path, tmp_path: Path) -> None:
    (tmp_path / "attestations").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"weights")
    sign(tmp_path, Keyless(trust))
    verify(tmp_path, Identity(WORKFLOW, ISSUER, trust))
    (tmp_path / "weights.bin").write_bytes(b"weightz")
    with pytest.raises(UserError, match="or changed since"):
        verify(tmp_path, Identity(WORKFLOW, ISSUER, trust))


def test_roots_of_another_sigstore_do_not_vouch(job: None, trust: Path, tmp_path: Path) -> None:
    (tmp_path / "attestations").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"weights")
    sign(tmp_path, Keyless(trust))
    with sigstore() as other:
        (trust.parent / "other.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"not signed by .*failed to build"):
        verify(tmp_path, Identity(WORKFLOW, ISSUER, trust.parent / "other.json"))


def test_without_a_token_nothing_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere(monkeypatch)
    with pytest.raises(UserError, match=r"--keyless: no OIDC token can be had here; .* --key FILE"):
        sign(tmp_path, Keyless())
    monkeypatch.setenv("GITLAB_CI", "true")  # a job whose file asks for no token
    with pytest.raises(UserError, match=r"SIGSTORE_ID_TOKEN not found\); on GitHub .*id-token: write"):
        sign(tmp_path, Keyless())


def test_a_sigstore_that_is_not_there_is_one_line(job: None, trust: Path, tmp_path: Path) -> None:
    config = json.loads(trust.read_text())
    services = config["signingConfig"]
    for name in ("caUrls", "oidcUrls", "rekorTlogUrls"):
        services[name] = [services[name][0] | {"url": "http://127.0.0.1:1"}]
    (tmp_path / "trust.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"gave no certificate or log entry .*nothing was published"
    ) as caught:
        sign(tmp_path, Keyless(tmp_path / "trust.json"))
    assert "\n" not in str(caught.value)
    (tmp_path / "trust.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"--identity: the roots of trust of the Sigstore of .* could not be had"
    ):
        verify(tmp_path, Identity(WORKFLOW, ISSUER, tmp_path / "trust.json"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("publish a --to b --key k --keyless", "expected one of them"),
        ("publish a --to b --trust-config t", "--trust-config goes with --keyless"),
        ("publish a --to b --keyless --trust-config nowhere", "--trust-config nowhere: no such file"),
        ("pull oci://h/a --identity me", "--identity WHO and --issuer URL go together"),
        ("pull oci://h/a --issuer u --key k", "give --key FILE, the publisher's public key, or --identity"),
        ("pull oci://h/a --unsigned --trust-config t", "--trust-config goes with --identity"),
    ],
)
def test_what_does_not_go_together(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 1
    assert told in capsys.readouterr().err
