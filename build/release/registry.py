"""An OCI registry's API (distribution spec 1.1), as far as it is needed: blobs, manifests, referrers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from build.release.reference import Reference
from engines.errors import UserError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
FALLBACK = re.compile(r"sha256-[0-9a-f]{64}")  # tag of an index of referrers
LARGEST_MANIFEST = 4 << 20  # registries must take this much; more is no manifest
TRIES = 5
Json = dict[str, Any]


class Login(httpx2.Auth):
    """What a registry asks for on 401: a token from its issuer, or user and password themselves.

    They are the ones `docker login`, `oras login` or `skopeo login` left in ~/.docker/config.json.
    """

    def __init__(self, host: str) -> None:
        self.basic = _docker_login(host)
        self.header: str | None = None

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        if self.header:
            request.headers["authorization"] = self.header
        response = yield request
        if response.status_code != 401:
            return
        scheme, _, rest = response.headers.get("www-authenticate", "").partition(" ")
        if scheme.lower() == "bearer":
            asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            realm = asked.pop("realm", "")
            # A mount needs two repositories, each in a parameter of its own.
            scopes = [("scope", scope) for scope in asked.pop("scope", "").split()]
            headers = {"authorization": self.basic} if self.basic else {}
            url = httpx2.URL(realm, params=[*asked.items(), *scopes])
            granted = yield httpx2.Request("GET", url, headers=headers)
            if granted.status_code != 200:
                return
            granted.read()
            answer = granted.json()
            self.header = f"Bearer {answer.get('token') or answer.get('access_token')}"
        elif scheme.lower() == "basic" and self.basic:
            self.header = self.basic
        else:
            return
        request.headers["authorization"] = self.header
        yield request


class Registry:
    """One repository of a registry. Every failure is a UserError; lost connections are retried."""

    def __init__(self, reference: Reference, transport: httpx2.BaseTransport | None = None) -> None:
        self.reference = reference
        self.pause = time.sleep
        self.client = httpx2.Client(
            auth=Login(reference.host), follow_redirects=True, timeout=60, transport=transport
        )

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def url(self, path: str) -> str:
        return f"{self.reference.url}/{path}"

    def ask(self, method: str, url: str, *expected: int, **options: Any) -> httpx2.Response:
        """A response with one of the expected codes; UserError for any other."""
        response = self.retry(lambda: self.client.request(method, url, **options))
        if response.status_code not in expected:
            raise UserError(self.complaint(method, url, response))
        return response

    def retry(self, request: Callable[[], httpx2.Response]) -> httpx2.Response:
        """Tries again when the connection is lost, or the registry is overloaded, for half a minute."""
        for attempt in range(TRIES):
            try:
                response = request()
            except httpx2.TransportError as error:
                if attempt == TRIES - 1:
                    raise UserError(
                        f"{self.reference.host}: {str(error) or type(error).__name__}; is a registry there?"
                    ) from None
            else:
                if response.status_code not in (429, 502, 503, 504) or attempt == TRIES - 1:
                    return response
            self.pause(2.0**attempt)
        raise AssertionError("the last attempt returns or raises")

    def complaint(self, method: str, url: str, response: httpx2.Response) -> str:
        code = response.status_code
        where = f"{self.reference.host}/{self.reference.repository}"
        if code in (401, 403):
            return f"{where}: the registry refuses ({code}); log in with `docker login {self.reference.host}`"
        try:
            told = "; ".join(str(error["message"]) for error in response.json()["errors"])
        except (ValueError, KeyError, TypeError):
            told = response.reason_phrase
        return f"{where}: {method} {httpx2.URL(url).path.rsplit('/', 2)[-2]} failed with {code}: {told}"

    def has_blob(self, digest: str) -> bool:
        return self.ask("HEAD", self.url(f"blobs/{digest}"), 200, 404).status_code == 200

    def has_blob_in(self, repository: str, digest: str) -> bool:
        """Whether another repository of this registry has it, as far as may be known here."""
        url = replace(self.reference, repository=repository).url
        return self.retry(lambda: self.client.head(f"{url}/blobs/{digest}")).status_code == 200

    def manifest(self, reference: str) -> tuple[bytes, Json] | None:
        """A manifest or index as stored and as parsed; one asked for by digest has that digest."""
        headers = {"accept": f"{MANIFEST}, {INDEX}"}
        response = self.ask("GET", self.url(f"manifests/{reference}"), 200, 404, headers=headers)
        if response.status_code == 404:
            return None
        content = response.content
        if reference.startswith("sha256:") and digest_of(content) != reference:
            raise UserError(f"{self.reference.at(reference)}: the registry sent a manifest of another digest")
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if not isinstance(document, dict) or len(content) > LARGEST_MANIFEST:
            raise UserError(f"{self.reference.host}: {reference} is no manifest")
        return content, document

    def put_manifest(self, reference: str, document: Json) -> str:
        """Stores a manifest or index; returns its digest. One with a subject becomes its referrer."""
        content = canonical(document)
        headers = {"content-type": document["mediaType"]}
        response = self.ask("PUT", self.url(f"manifests/{reference}"), 201, content=content, headers=headers)
        digest = digest_of(content)
        if "subject" in document and "oci-subject" not in response.headers:
            self._list_by_tag(document, digest, len(content))
        return digest

    def tags(self) -> list[str]:
        """Every tag of the repository but those that stand for the referrers API."""
        found: list[str] = []
        url: str | None = self.url("tags/list")
        while url:
            response = self.ask("GET", url, 200, 404)
            if response.status_code == 404:
                break
            found += response.json().get("tags") or []
            after = response.links.get("next", {}).get("url")
            url = str(response.url.join(after)) if after else None
        return [tag for tag in found if not FALLBACK.fullmatch(tag)]

    def referrers(self, digest: str) -> list[Json]:
        """Descriptors of what refers to a manifest: by the API, or where there is none by a tag."""
        response = self.ask("GET", self.url(f"referrers/{digest}"), 200, 404)
        if response.status_code == 200:
            return list(response.json().get("manifests", []))
        found = self.manifest(fallback_tag(digest))
        return list(found[1].get("manifests", [])) if found else []

    def _list_by_tag(self, document: Json, digest: str, size: int) -> None:
        """The spec's duty of a client whose registry knows no referrers: an index under the fallback tag."""
        subject = document["subject"]["digest"]
        found = self.manifest(fallback_tag(subject))
        manifests = found[1]["manifests"] if found else []
        if any(entry["digest"] == digest for entry in manifests):
            return
        entry = {
            "mediaType": document["mediaType"],
            "digest": digest,
            "size": size,
            "artifactType": document["artifactType"],
            "annotations": document.get("annotations", {}),
        }
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*manifests, entry]}
        self.put_manifest(fallback_tag(subject), index)


def fallback_tag(digest: str) -> str:
    return digest.replace(":", "-")


def canonical(document: Json) -> bytes:
    """The bytes that are stored and hashed: equal documents have equal digests."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _docker_login(host: str) -> str | None:
    """The header of a stored login; credential helpers are not asked."""
    try:
        logins = json.loads((Path.home() / ".docker" / "config.json").read_bytes())["auths"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    stored = logins.get(host) or logins.get(f"https://{host}") or {}
    if stored.get("auth"):
        return f"Basic {stored['auth']}"
    if stored.get("username"):
        pair = f"{stored['username']}:{stored.get('password', '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    return None
