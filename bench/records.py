"""Evidence as JSON lines: one dataclass instance a line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from engines.errors import UserError

T = TypeVar("T")


def as_lines(records: Iterable[Any]) -> str:
    """Dataclass instances, one JSON object a line."""
    return "".join(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n" for record in records)


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Writes them as a file."""
    Path(path).write_text(as_lines(records), encoding="utf-8")


def append_records(path: Path, records: Iterable[Any]) -> None:
    """Adds them to a file; what a crash or a full disk had cut off there is dropped before."""
    with Path(path).open("ab+") as file:
        file.seek(0)
        written = file.read()
        file.truncate(written.rfind(b"\n") + 1)
        file.write(as_lines(records).encode())


def read_records(path: Path, kind: type[T], *, appended: bool = False) -> list[T]:
    """Reads what was written. Raises UserError naming file and line.

    appended: to such a file, whose last line may have been cut off, and then is none.
    """
    adapter = TypeAdapter(kind)
    try:
        content = Path(path).read_bytes()
        lines = content[: content.rfind(b"\n") + 1 if appended else None].decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(adapter.validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise UserError(f"{path}:{number}: {where}: {first['msg']}; expected {kind.__name__}") from None
    return records
