"""The web page at /: the files of serve/web, under a policy that lets nothing else run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).resolve().parent.parent / "web"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/web/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/web/client.js": ("client.js", "text/javascript; charset=utf-8"),
    "/web/style.css": ("style.css", "text/css; charset=utf-8"),
}
HEADERS = {
    # It asks the arms that its reader names, and shows what he attached.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src blob: data:; media-src blob: data:; connect-src http: https:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """One for each file."""

    async def send(content: bytes, kind: str, request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return [
        Route(path, partial(send, (FOLDER / name).read_bytes(), kind)) for path, (name, kind) in FILES.items()
    ]
