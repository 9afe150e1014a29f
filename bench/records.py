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


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Writes dataclass instances, one JSON object a line."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")


def read_records(path: Path, kind: type[T]) -> list[T]:
    """Reads what `write_records` wrote. Raises UserError naming file and line."""
    adapter = TypeAdapter(kind)
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(adapter.validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise UserError(f"{path}:{number}: {where}: {first['msg']}; expected {kind.__name__}") from None
    return records
