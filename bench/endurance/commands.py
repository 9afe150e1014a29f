"""`bench endurance` on the command line."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from bench.endurance.judge import excused, judge
from bench.endurance.run import Plan, Run, endure
from bench.router.servers import ROOT
from bench.tables import show
from bench.verdict import EXIT, Check, Verdict
from engines.artifact import MANIFEST
from engines.errors import UserError

BUILT = Path("artifacts/qwen3-vl-micro")
VARIANTS = ("gptq-int4-onnx", "onnx-fp16")


def endurance(options: Namespace) -> int:
    """A line for each promise; the worst verdict decides."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended, too
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="endurance-")))
        if (work / "log").exists():
            raise UserError(f"{work} holds an earlier run: name a new folder, or remove it")
        plan = Plan(
            seconds=60 * options.minutes,
            rate=options.rate,
            restarts=max(1, round(options.minutes / 10)),
            policies=max(6, round(3 * options.minutes)),
            every_s=min(2.0, options.minutes),
            seed=options.seed,
        )
        run = endure(plan, options.artifacts or _built(), work, _tell)
    checks = judge(run)
    found = {check.verdict for check in checks}
    verdict = next(verdict for verdict in Verdict if verdict in found)
    show(_table(checks), _document(run, checks, verdict), options)
    if not options.json:
        print(f"{verdict}: {_told(run)}")
    return EXIT[verdict]


def _built() -> list[Path]:
    """Both artifacts of the embedded checkpoint, built where they are not. UserError if they do not pass."""
    folders = [BUILT / name for name in VARIANTS]
    if _missing(folders):
        command = [sys.executable, "-m", "build", "all", "--only", *VARIANTS]
        subprocess.run([*command, "--out", str(BUILT.parent.resolve())], cwd=ROOT, stdout=sys.stderr)
    if missing := _missing(folders):
        raise UserError(
            f"{missing[0]} was not published, for the reason above; name two artifacts by --artifacts DIR DIR"
        )
    return folders


def _missing(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if not (folder / MANIFEST).is_file()]


def _table(checks: list[Check]) -> Table:
    shown = Table("", "check", "found", "interval", "limit", "n", "", box=None, header_style="bold")
    for check in checks:
        value = "" if check.candidate is None else f"{check.candidate:.3g} {check.unit}"
        interval = "" if check.ci_low is None else f"{check.ci_low:.3g} to {check.ci_high:.3g}"
        limits = (interval, f"{check.limit:g}", str(check.n))
        shown.add_row(check.verdict, check.name, value, *limits, check.reason)
    return shown


def _document(run: Run, checks: list[Check], verdict: Verdict) -> dict[str, object]:
    return {
        "verdict": verdict,
        "checks": [check.model_dump(mode="json", exclude_none=True) for check in checks],
        "requests": Counter(heard.kind for heard in run.heard),
        "ends": Counter(f"{heard.end} {heard.status}" for heard in run.heard),
        "arms": Counter(heard.arm for heard in run.heard),
        "ended_with_their_arm": sum(excused(heard, run.changes) for heard in run.heard),
        "changes": [asdict(change) | {"at_s": change.began - run.began} for change in run.changes],
        "lives": [
            asdict(life) | {"times": [round(at - run.began, 2) for at in life.times]} for life in run.lives
        ],
        "client_cpu_s": run.client_cpu_s,
        "plan": asdict(run.plan),
    }


def _told(run: Run) -> str:
    router = sum(life.cpu_s for life in run.lives if life.name == "router")
    busy = 100 * (router + run.client_cpu_s) / run.plan.seconds
    return (
        f"{len(run.heard)} requests in {run.plan.seconds / 60:g} minutes, {len(run.changes)} changes; "
        f"router and clients took {busy:.1f} % of a core; seed {run.plan.seed}"
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
