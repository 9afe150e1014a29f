"""Names of artifacts in OCI registries: `oci://HOST/REPOSITORY[:TAG][@sha256:…]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engines.errors import UserError

SCHEME = "oci://"
# Patterns of the OCI distribution spec 1.1, names and references.
NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REFERENCE = re.compile(
    rf"(?P<host>[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)/(?P<repository>{NAME}(?:/{NAME})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """Where an artifact is or goes. What it says last wins: a digest, else a tag."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        found = REFERENCE.fullmatch(text.removeprefix(SCHEME))
        if not text.startswith(SCHEME) or found is None:
            raise UserError(
                f"{text}: expected oci://HOST/REPOSITORY[:TAG][@sha256:…], the repository in lower case"
            )
        return cls(found["host"], found["repository"], found["tag"], found["digest"])

    @property
    def last(self) -> str:
        """What a manifest is asked for by."""
        return self.digest or self.tag or "latest"

    @property
    def url(self) -> str:
        """Of the repository's API: plain HTTP to this machine, as other clients do, else HTTPS."""
        name = self.host.rsplit(":", 1)[0] if not self.host.endswith("]") else self.host
        scheme = "http" if name in ("localhost", "127.0.0.1", "[::1]") else "https"
        return f"{scheme}://{self.host}/v2/{self.repository}"

    def at(self, digest: str) -> str:
        """The same place by the content's digest: what a deployment should name."""
        return f"{SCHEME}{self.host}/{self.repository}@{digest}"
