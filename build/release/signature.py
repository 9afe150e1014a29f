"""Signatures of whole folders by OpenSSF Model Signing (OMS): a Sigstore bundle over every file's hash.

Keys are elliptic-curve ones in PEM: `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`, and for
whoever pulls `openssl ec -in key.pem -pubout -out key.pub`.
"""

from __future__ import annotations

from pathlib import Path

from engines.artifact import ATTESTATIONS
from engines.errors import UserError

SIGNATURE = f"{ATTESTATIONS}/model.sig"
INSTALL = "pip install -c requirements/dev.txt model-signing pyOpenSSL"


def sign(folder: Path, key: Path) -> None:
    """Signs every file of `folder`, as they are now, but the signature itself."""
    _check_key(key, "PRIVATE KEY")
    try:
        from model_signing import hashing, signing
    except ImportError:
        raise UserError(f"signing needs a package that is not installed: {INSTALL}") from None
    # git's files belong to the folder like any other.
    ignoring = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(ignoring)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key} is no private key to sign with: {_first_line(error)}") from None
    signer.sign(folder, folder / SIGNATURE)


def verify(folder: Path, key: Path) -> None:
    """UserError unless every file of `folder` is as whoever has the private key of `key` signed it."""
    _check_key(key, "PUBLIC KEY")
    try:
        from model_signing import hashing, verifying
    except ImportError:
        raise UserError(f"checking a signature needs a package that is not installed: {INSTALL}") from None
    # What is ignored is said here, not taken from the signature.
    ignoring = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key} is no public key: {_first_line(error)}") from None
    try:
        verifier.set_hashing_config(ignoring).verify(folder, folder / SIGNATURE)
    except Exception as error:  # whatever is wrong with a signature, it does not vouch for the folder
        reason = _first_line(error) or type(error).__name__
        raise UserError(f"not signed by {key}, or changed since ({reason})") from None


def _check_key(key: Path, kind: str) -> None:
    try:
        text = key.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--key {key}: {getattr(error, 'strerror', None) or 'not a text'}") from None
    if kind not in text:
        raise UserError(f"--key {key}: expected a PEM file with a {kind}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else ""
