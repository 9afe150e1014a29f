"""Signatures of whole folders by OpenSSF Model Signing (OMS): a Sigstore bundle over every file's hash.

By a key, an elliptic-curve one in PEM: `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`, and
for whoever pulls `openssl ec -in key.pem -pubout -out key.pub`. Or by an identity (keyless.py).
"""

from __future__ import annotations

from pathlib import Path

from build.release.keyless import Identity, Keyless, certified_signer, identity_verifier, reason_of
from engines.artifact import ATTESTATIONS
from engines.errors import UserError

SIGNATURE = f"{ATTESTATIONS}/model.sig"
INSTALL = "pip install -c requirements/dev.txt model-signing pyOpenSSL"


def sign(folder: Path, signer: Path | Keyless) -> None:
    """Signs every file of `folder`, as they are now, but the signature itself.

    signer: the file of a private key, or who the machine is shown to be.
    """
    if isinstance(signer, Path):
        _check_key(signer, "PRIVATE KEY")
    try:
        from model_signing import hashing, signing
    except ImportError:
        raise UserError(f"signing needs a package that is not installed: {INSTALL}") from None
    # git's files belong to the folder like any other.
    ignoring = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    if isinstance(signer, Keyless):
        certified_signer(signer, folder, folder / SIGNATURE, ignoring)
        return
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=signer).set_hashing_config(ignoring)
    except (ValueError, TypeError) as error:
        raise UserError(f"{signer} is no private key to sign with: {reason_of(error)}") from None
    config.sign(folder, folder / SIGNATURE)


def verify(folder: Path, expected: Path | Identity) -> None:
    """UserError unless every file of `folder` is as it was when `expected` signed it: whoever has the private
    key of the public one in that file, or that identity."""
    if isinstance(expected, Path):
        _check_key(expected, "PUBLIC KEY")
    try:
        from model_signing import hashing, verifying
    except ImportError:
        raise UserError(f"checking a signature needs a package that is not installed: {INSTALL}") from None
    # What is ignored is said here, not taken from the signature.
    ignoring = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    if isinstance(expected, Identity):
        verifier = identity_verifier(expected)
    else:
        try:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=expected)
        except (ValueError, TypeError) as error:
            raise UserError(f"{expected} is no public key: {reason_of(error)}") from None
    try:
        verifier.set_hashing_config(ignoring).verify(folder, folder / SIGNATURE)
    except Exception as error:  # whatever is wrong with a signature, it does not vouch for the folder
        raise UserError(f"not signed by {expected}, or changed since ({reason_of(error)})") from None


def _check_key(key: Path, kind: str) -> None:
    try:
        text = key.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--key {key}: {getattr(error, 'strerror', None) or 'not a text'}") from None
    if kind not in text:
        raise UserError(f"--key {key}: expected a PEM file with a {kind}")
