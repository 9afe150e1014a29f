"""Signatures without a key to keep: Sigstore certifies for ten minutes who the machine is shown to be.

A CI job shows it with a token of its provider (OpenID Connect): a workflow of a repository, at a branch.
The certificate and the signature are entered in a public log, so whoever pulls needs no more than the name.
https://docs.sigstore.dev/about/overview/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import UserError

AUDIENCE = "sigstore"  # whom a token must be for
WHERE = "on GitHub `permissions: id-token: write`, on GitLab `id_tokens: SIGSTORE_ID_TOKEN: {aud: sigstore}`"


@dataclass(frozen=True)
class Keyless:
    """Sign as who this machine is. trust: services and roots of a Sigstore of one's own; None: the public."""

    trust: Path | None = None


@dataclass(frozen=True)
class Identity:
    """Who must have signed: a workflow's address or an e-mail, on the word of an issuer of tokens."""

    name: str
    issuer: str
    trust: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} by {self.issuer}"


def certified_signer(keyless: Keyless, folder: Path, signature: Path, hashing: Any) -> None:
    """Signs `folder` into the file `signature`. UserError where no token or no certificate can be had."""
    from model_signing import signing

    token = _token()
    try:
        config = signing.Config().use_sigstore_signer(identity_token=token, trust_config=keyless.trust)
        config.set_hashing_config(hashing).sign(folder, signature)
    except (
        Exception
    ) as error:  # its own errors, the HTTP client's and the update client's have no common base
        raise UserError(
            f"--keyless: {_services(keyless.trust)} gave no certificate or log entry ({reason_of(error)}); "
            "nothing was published, sign with --key FILE or try again"
        ) from None


def identity_verifier(expected: Identity) -> Any:
    """A configuration of model_signing's. UserError where it cannot be known whom to trust."""
    from model_signing import verifying

    try:
        return verifying.Config().use_sigstore_verifier(
            identity=expected.name, oidc_issuer=expected.issuer, trust_config=expected.trust
        )
    except Exception as error:  # as above
        raise UserError(
            f"--identity: the roots of trust of {_services(expected.trust)} could not be had "
            f"({reason_of(error)}); without a network give them by --trust-config FILE"
        ) from None


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or of what it came from."""
    lines = str(error).strip().splitlines()
    if not lines and error.__cause__:
        return reason_of(error.__cause__)
    return lines[0] if lines else type(error).__name__


def _token() -> str:
    """What the CI's provider says of this job."""
    from sigstore.oidc import IdentityError, detect_credential

    try:
        token = detect_credential(AUDIENCE)
    except IdentityError as error:
        raise UserError(f"--keyless: no OIDC token can be had here ({reason_of(error)}); {WHERE}") from None
    if not token:
        raise UserError(
            "--keyless: no OIDC token can be had here; expected a CI job that is given one, "
            f"{WHERE}; elsewhere sign with --key FILE"
        )
    return token


def _services(trust: Path | None) -> str:
    return f"the Sigstore of {trust}" if trust else "the public Sigstore"
