"""A rollout from the command line: one request to a running router's admin port."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from engines.errors import UserError


def ask(admin: str, token_file: Path, action: str, to: float | None = None) -> Any:
    """The answer: the rollout as it then is. Raises UserError on a refusal, or where nobody answers."""
    try:
        token = token_file.read_text().strip()
    except FileNotFoundError:
        raise UserError(
            f"no token {token_file}: expected the router's; name it by --admin-token-file"
        ) from None
    if len(token.split()) != 1:
        raise UserError(f"{token_file} holds no token: expected one word, as the router wrote it")
    path, method = ("/rollout", "GET") if action == "status" else (f"/rollout/{action}", "POST")
    try:
        request = urllib.request.Request(
            admin.rstrip("/") + path,
            None if to is None else json.dumps({"to": to}).encode(),
            {"Authorization": f"Bearer {token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise UserError(_message(error)) from None
    except (urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "reason", error)
        raise UserError(
            f"no router answers at {admin}: {getattr(why, 'strerror', None) or why}; "
            "name its admin port with --admin, or start one: python -m serve router POLICY"
        ) from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.url} answers {error.code}: expected the admin port of a router"
