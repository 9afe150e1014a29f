"""Mutants: small changes of the modules that decide, each of which a test ought to notice.

    make mutants [MODULES="bench.gate build.store"] [SAMPLE=150]

The changes are those of mutmut's operators, everywhere in a module but in type annotations, docstrings and
descriptions of fields. Each is tried in a fork whose packages are imported already, by the module's own tests
that take no more than two seconds, the shortest first, until one fails. Of a module with more than SAMPLE
mutants as many are drawn, by a seed. Survivors are printed as what they change.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

import libcst as cst
import pytest
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "bench.gate": "gate growth noninferiority",
    "bench.noninferiority": "noninferiority gate",
    "bench.noise": "noise gate",
    "bench.growth": "growth",
    "bench.waivers": "noninferiority",
    "bench.verdict": "gate noninferiority reference",
    "bench.statistics": "statistics noninferiority",
    "engines.int4": "int4 packing",
    "engines.packing": "packing",
    "serve.router.policy": "policy assignment reference",
    "serve.router.assignment": "assignment policy",
    "build.store": "store shared",
}
OURS = {"bench", "build", "engines", "quantize", "serve", "tests", "conftest"}
# Read by type checkers alone.
UNREAD = {"__all__", "W", "Array", "Fields", "Answers", "Place", "Matcher", "Figure", "Run"}
SLOWEST_S = 2.0  # of a test
CPU_S = 60  # of a mutant: more is a loop without end
WAIT_S = 300  # of a mutant: more waits for what does not come


@dataclass(eq=False)
class Run:
    """Files of tests under pytest until one fails; those that are named, in that order, where any are."""

    files: Sequence[Path]
    folder: Path
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.place = {name: place for place, name in enumerate(self.names)}

    def pytest_ignore_collect(self, collection_path: Path) -> bool:
        return collection_path.suffix == ".py" and collection_path not in self.files

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.names:
            items[:] = [item for item in items if item.nodeid in self.place]
            items.sort(key=lambda item: self.place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        began = sum(os.times()[:4])
        done = yield
        self.seconds[item.nodeid] = sum(os.times()[:4]) - began
        return done

    def passes(self) -> bool:
        place = tempfile.mkdtemp(dir=self.folder)  # a mutant may leave what another cannot remove
        options = ["-x", "-p", "no:cacheprovider", f"--basetemp={place}/tests"]
        return pytest.main([*options, *map(str, self.files)], plugins=[self]) == pytest.ExitCode.OK


def in_fork(work: Callable[[], object], folder: Path) -> str:
    """What a child makes of it, as JSON; nothing where it had to be ended. What it started ends with it."""
    told = folder / "told"
    told.write_text("")
    gc.freeze()  # else a child's first collection copies every page
    if not (child := os.fork()):
        gc.disable()
        os.setsid()
        signal.alarm(WAIT_S)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        try:
            told.write_text(json.dumps(work()))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return told.read_text()


def packages(run: Run) -> list[str]:
    """Of others, that the tests import."""
    run.passes()
    return [name for name in sys.modules if name.partition(".")[0] not in OURS]


def quick(run: Run) -> tuple[list[str], int] | None:
    """The tests, the shortest first, and how many are left out; None where one fails."""
    if not run.passes():
        return None
    kept = sorted((seconds, name) for name, seconds in run.seconds.items() if seconds <= SLOWEST_S)
    return [name for _, name in kept], len(run.seconds) - len(kept)


def notices(run: Run, module: str, code: CodeType) -> bool:
    """Whether a test fails when the module is `code`."""
    original = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
        return code if name == module else original(loader, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    return not run.passes()


class Places(cst.CSTVisitor):
    """Every node that an operator changes, with what it becomes."""

    def __init__(self) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom):
            return False
        if isinstance(node, cst.Assign) and getattr(node.targets[0].target, "value", "") in UNREAD:
            return False
        if isinstance(node, cst.Arg) and node.keyword and node.keyword.value == "description":
            return False
        makers = [maker for kind, maker in mutation_operators if isinstance(node, kind)]
        self.found += [(node, other) for maker in makers for other in maker(node)]
        return True


def mutants(source: str) -> dict[str, CodeType]:
    """The module's source with one change each: what compiles, and is not the same."""
    module = cst.MetadataWrapper(cst.parse_module(source)).module
    places = Places()
    module.visit(places)
    made = {}
    for node, other in places.found:
        text = module.deep_replace(node, other).code
        with warnings.catch_warnings(), suppress(SyntaxError):
            warnings.simplefilter("ignore")
            made[text] = compile(text, "", "exec", dont_inherit=True)
    made.pop(source, None)
    return made


def changed(source: str, mutant: str) -> str:
    """The lines that differ, with the number of the first."""
    lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), n=0, lineterm="")
    _, _, place, *rest = lines
    return "\n".join([place.split()[1].lstrip("-").partition(",")[0], *rest])


def report(module: str, sample: int, folder: Path) -> str:
    """Tries a module's mutants, prints who survives, and returns a line of figures."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    files = [ROOT / "tests" / f"test_{name}.py" for name in TESTS[module].split()]
    for name in json.loads(in_fork(lambda: packages(Run(files, folder)), folder)):
        with suppress(Exception):
            importlib.import_module(name)
    if not (found := json.loads(in_fork(lambda: quick(Run(files, folder)), folder))):
        sys.exit(f"{module}: its tests fail as it is")
    names, slow = found
    source = path.read_text()
    made = mutants(source)
    drawn = random.Random(0).sample(sorted(made), min(sample, len(made)))
    killed = ended = 0
    for text in drawn:
        work = partial(notices, Run(files, folder, names), module, made[text])
        told = in_fork(work, folder)
        killed += told != "false"
        ended += not told
        if told == "false":
            print(f"{path.relative_to(ROOT)}:{changed(source, text)}\n", flush=True)
    return (
        f"{module:24} {len(made):5} mutants, {len(drawn):4} tried, {killed:4} killed"
        f" ({killed / len(drawn):.1%}), of them {ended} ended; {len(names)} tests, {slow} slow ones left out"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}; default all")
    parser.add_argument("--sample", type=int, default=10_000, help="mutants of a module to try, by a seed")
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        lines = [report(module, asked.sample, Path(folder).resolve()) for module in asked.modules or TESTS]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
