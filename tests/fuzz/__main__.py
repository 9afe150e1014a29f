"""`python -m tests.fuzz [NAME…] --seconds 1800`: inputs that break a parser (pip install atheris).

atheris mutates valid inputs and keeps what reaches new code of ours: in --keep DIR, where the next run goes
on. What breaks a parser is written to tests/fuzz/corpus/NAME, where tests/test_fuzz.py tries it again from
then on.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["engines", "bench", "build", "quantize", "serve"]):
    from tests.fuzz.parsers import PARSERS, attempt
from tests.fuzz.seeds import CORPUS, seeds

LARGEST = 1 << 16


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PARSERS)}")
    options.add_argument("--seconds", type=int, default=60, help="for each")
    options.add_argument(
        "--keep", type=Path, metavar="DIR", help="of what reaches new code; default: nowhere"
    )
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if unknown := set(chosen.names) - set(PARSERS):
        options.error(f"no parser {', '.join(unknown)}: expected some of {', '.join(PARSERS)}")
    if chosen.worker:
        fuzz(chosen.names[0], chosen.seconds, chosen.keep)
    # Each in a process of its own: libFuzzer ends the one it runs in.
    command = [sys.executable, "-m", "tests.fuzz", "--worker", "--seconds", str(chosen.seconds)]
    command += ["--keep", str(chosen.keep)] if chosen.keep else []
    names = chosen.names or list(PARSERS)
    broken = [name for name in names if subprocess.run([*command, name]).returncode]
    print(f"{len(names)} parsers, broken: {', '.join(broken) or 'none'}")
    return int(bool(broken))


def fuzz(name: str, seconds: int, keep: Path | None) -> None:
    """Never returns."""

    def one(content: bytes) -> None:
        try:
            attempt(name, content)
        except BaseException:
            folder = CORPUS / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)
            raise

    folder = keep / name if keep else Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (folder / str(number)).write_bytes(seed)
    flags = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={folder}/",
        f"-max_len={LARGEST}",
        "-timeout=20",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(folder)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
