"""Lines of a router's log, checked one by one: what is none is counted and named, and the rest is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from engines.errors import UserError

NAMED = 5  # of the lines left out


@checked(slots=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class Line:
    """What a report needs of a line; latencies in ms."""

    timestamp: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
    status: int = Field(alias="http.response.status_code")
    experiment: str = Field(alias="feature_flag.key")
    version: str = Field(alias="feature_flag.version")
    assigned: str | None = Field(None, alias="feature_flag.result.variant")
    reason: str | None = Field(None, alias="feature_flag.result.reason")
    user: str = Field("", alias="feature_flag.context.id")
    error: str | None = Field(None, alias="error.type")
    input_tokens: NonNegativeInt = Field(0, alias="gen_ai.usage.input_tokens")
    output_tokens: NonNegativeInt = Field(0, alias="gen_ai.usage.output_tokens")
    arm: str | None = Field(None, alias="ab.arm")
    digest: str | None = Field(None, alias="ab.artifact_digest")
    fallback: str | None = Field(None, alias="ab.fallback")
    mirror: bool = Field(False, alias="ab.mirror")
    ttft: NonNegativeFloat | None = Field(None, alias="ab.ttft_ms")
    itl: NonNegativeFloat | None = Field(None, alias="ab.itl_ms")
    e2e: NonNegativeFloat | None = Field(None, alias="ab.e2e_latency_ms")


LINE = TypeAdapter(Line)


@dataclass
class Logs:
    """What was read, and what was not: how many lines, the first of them with the reason."""

    lines: list[Line] = field(default_factory=list)
    left_out: int = 0
    named: list[str] = field(default_factory=list)


def read_logs(files: Iterable[Path]) -> Logs:
    """Every line of log files. Raises UserError where a file cannot be read."""
    logs = Logs()
    for file in files:
        try:
            with file.open("rb") as lines:
                for line in _lines(file, lines, logs):
                    logs.lines.append(line)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
    return logs


def _lines(file: Path, lines: Iterable[bytes], logs: Logs) -> Iterator[Line]:
    for number, text in enumerate(lines, 1):
        try:
            yield LINE.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            why = "is cut off" if not text.endswith(b"\n") else f"{where or 'not JSON'}: {first['msg']}"
            logs.left_out += 1
            if len(logs.named) < NAMED:
                logs.named.append(f"{file}:{number}: {why}")
