"""What one store has done others fetch: from a folder, a real S3 server, a real OCI registry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fsspec.core import url_to_fs

from build.plan import Planner
from build.release.registry import MANIFEST as IMAGE
from build.store import Entry, Store
from engines.artifact import MANIFEST
from engines.errors import UserError
from tests.oci_registry import blob_file, oci_registry
from tests.s3_server import s3_server
from tests.test_store import refuse, work, write

KINDS = ("memory", "file", "s3", "oci")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("registry")
    with oci_registry(folder) as host:
        yield host, folder


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "s3":
            return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
        case "oci":
            return f"oci://{request.getfixturevalue('registry')[0]}/{tmp_path.name.replace('_', '').lower()}"
        case kind:
            return f"{kind}://{tmp_path}/shared"


def several(out: Path, scratch: Path) -> dict[str, Any]:
    """A file in a folder, an empty one, and two of one content, larger than a chunk of any protocol here."""
    write(out, scratch)
    (out / "empty").touch()
    for name in ("one", "other"):
        (out / name).write_bytes(bytes(range(256)) * 40_000)
    return {}


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_what_one_store_has_done_another_fetches(url: str, tmp_path: Path) -> None:
    done = Store(tmp_path / "1", url=url).do(work(), several)
    other = Store(tmp_path / "2", url=url)
    fetched = other.do(work(), refuse)
    assert (fetched.cached, fetched.reason, fetched.digest) == (True, f"fetched from {url}", done.digest)
    file = fetched.path / "folder" / "file.txt"
    assert file.read_text() == "content"
    assert not file.stat().st_mode & 0o222
    assert other.do(work(), refuse).reason == "cache hit"
    assert isinstance(other.find(work()), Entry)
    assert [path.name for path in fetched.path.parent.iterdir()] == [fetched.path.name]


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_what_was_done_before_it_is_shared_is_sent(url: str, tmp_path: Path) -> None:
    assert not Store(tmp_path / "2", url=url).bring(tmp_path / "2" / "test" / "a-0123456789abcdef")
    Store(tmp_path / "1").do(work(), write)
    Store(tmp_path / "1", url=url).do(work(), refuse)
    assert Store(tmp_path / "2", url=url).do(work(), refuse).cached


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_a_plan_knows_what_is_there(url: str, tmp_path: Path) -> None:
    done = Store(tmp_path / "1", url=url).do(work(), write)

    def plan(store: Store) -> list[tuple[str, bool, str]]:
        planner = Planner(store)
        first = planner.do(lambda: (work(), refuse))
        planner.do(lambda: (work("b", inputs={"x": first.digest}), refuse))
        assert not store.root.exists(), "nothing is fetched for a plan"
        return [(planned.name, entry.cached, entry.reason) for planned, entry in planner.planned]

    assert plan(Store(tmp_path / "2", url=url)) == [
        ("a", True, f"is at {url}"),
        ("b", False, "not built yet"),
    ]
    assert plan(Store(tmp_path / "2")) == [
        ("a", False, "not built yet"),
        ("b", False, "its x will be built first"),
    ]
    assert (
        Store(tmp_path / "3", url=url).do(work("b", inputs={"x": done.digest}), write).reason
        == "not built yet"
    )


@pytest.mark.parametrize("url", ["memory", "s3"], indirect=True)
@pytest.mark.parametrize("broken", ["folder/file.txt", MANIFEST])
@pytest.mark.parametrize("content", [b"cOntent", None])
def test_shared_work_that_is_damaged_is_done_again(
    url: str, tmp_path: Path, broken: str, content: bytes | None
) -> None:
    key = Store(tmp_path / "1", url=url).do(work(), write).path.name
    files, root = url_to_fs(url)
    place = f"{root}/test/{key}/{broken}"
    files.rm(place) if content is None else files.pipe_file(place, content)
    done_again(url, tmp_path, key)


def done_again(url: str, tmp_path: Path, key: str) -> None:
    other, third = Store(tmp_path / "2", url=url), Store(tmp_path / "3", url=url)
    assert not other.bring(other.root / "test" / key)
    assert not (other.root / "test").exists() or list((other.root / "test").iterdir()) == []
    assert not other.do(work(), write).cached
    assert third.bring(third.root / "test" / key), "what was sent again is whole"
    assert isinstance(third.find(work()), Entry)


def lose_tag(document: dict[str, Any], url: str, folder: Path) -> None:
    """As a registry whose old tags are cleared away."""
    httpx2.delete(url).raise_for_status()


def lose_layer(document: dict[str, Any], url: str, folder: Path) -> None:
    """As one whose storage has lost a file."""
    httpx2.delete(url.replace("/manifests/", "/blobs/").replace(url[-71:], document["layers"][0]["digest"]))


@pytest.mark.parametrize("url", ["oci"], indirect=True)
@pytest.mark.parametrize("lose", [lose_tag, lose_layer])
def test_what_a_registry_has_lost_is_done_again(
    url: str, tmp_path: Path, registry: tuple[str, Path], lose: Callable[..., None]
) -> None:
    key = Store(tmp_path / "1", url=url).do(work(), write).path.name
    base = f"http://{url.removeprefix('oci://').replace('/', '/v2/', 1)}"
    tag = f"test-{key[-16:]}"
    stored = httpx2.get(f"{base}/manifests/{tag}", headers={"accept": IMAGE})
    lose(stored.json(), f"{base}/manifests/{stored.headers['docker-content-digest']}", registry[1])
    done_again(url, tmp_path, key)


@pytest.mark.parametrize("url", ["oci"], indirect=True)
def test_what_a_registry_has_damaged_is_refused(url: str, tmp_path: Path, registry: tuple[str, Path]) -> None:
    entry = Store(tmp_path / "1", url=url).do(work(), lambda out, scratch: only(out, tmp_path.name))
    (file,) = entry.manifest.files.values()
    stored = blob_file(registry[1], f"sha256:{file.sha256}")
    stored.write_bytes(stored.read_bytes().swapcase())
    other = Store(tmp_path / "2", url=url)
    with pytest.raises(UserError, match=r"file.txt: what the registry sent is not what its digest says"):
        other.do(work(), refuse)
    assert not (other.root / "test" / entry.path.name).exists()


def only(out: Path, content: str) -> dict[str, Any]:
    out.mkdir()
    (out / "file.txt").write_text(content)
    return {}


@pytest.mark.parametrize("url", ["oci"], indirect=True)
def test_other_clients_read_what_is_in_a_registry(url: str, tmp_path: Path) -> None:
    entry = Store(tmp_path / "1", url=url).do(work(), several)
    base = f"http://{url.removeprefix('oci://').replace('/', '/v2/', 1)}"
    image = httpx2.get(f"{base}/manifests/test-{entry.path.name[-16:]}", headers={"accept": IMAGE}).json()
    names = {layer["annotations"]["org.opencontainers.image.title"]: layer for layer in image["layers"]}
    assert names.keys() == entry.manifest.files.keys()
    assert httpx2.get(f"{base}/blobs/{names['folder/file.txt']['digest']}").text == "content"
    assert httpx2.get(f"{base}/blobs/{image['config']['digest']}").json() == json.loads(
        (entry.path / MANIFEST).read_text()
    )


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nosuch://x", r"^--store nosuch://x: .*; expected an fsspec URL"),
        (
            "oci://127.0.0.1:9/a:tag",
            r"^--store oci://127.0.0.1:9/a:tag: tags are of the work; expected oci://HOST/REPO",
        ),
        ("oci://", r"^oci://: expected oci://HOST/REPOSITORY"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_line(tmp_path: Path, url: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Store(tmp_path, url=url).do(work(), write)
