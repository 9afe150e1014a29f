"""``python -m build``: all, plan, list, inspect, verify, select, publish, pull, schema."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from engines.arguments import describe, exit_code, parse, positive
from engines.errors import UserError

MODULES = {
    "select": "build.select.commands",
    "publish": "build.release.commands",
    "pull": "build.release.commands",
}
EPILOG = "exit codes: 0 passed, 1 error, 2 usage, 3 gate failed or nothing fits, 4 gate inconclusive"


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="python -m build",
        description="Build variants of a checkpoint, measured and gated; select, publish and pull them.",
        epilog=EPILOG,
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument(
        "--recipe",
        default="micro",
        metavar="NAME|FILE",
        help="what to build, as micro or qwen3-vl-2b; default micro",
    )
    recipe.add_argument(
        "--model", metavar="DIR|HUB_ID@REVISION", help="checkpoint to build from, instead of the recipe's"
    )
    recipe.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="VARIANT",
        help="these variants, and those they are made from; default all of the recipe",
    )
    recipe.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=V",
        help="override a recipe field, for example evaluate.items=200",
    )
    recipe.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="refuse, before any work, a context that takes more; for example 6GB",
    )
    recipe.add_argument(
        "--store",
        metavar="URL",
        help="where finished work is shared: s3://BUCKET/PREFIX or what else fsspec knows, oci://HOST/REPO",
    )
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts"),
        metavar="DIR",
        help="where variants are; default artifacts",
    )
    json_flag = argparse.ArgumentParser(add_help=False)
    json_flag.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    parents = [recipe, out, json_flag]
    all_ = commands.add_parser(
        "all",
        parents=parents,
        epilog=EPILOG,
        help="make every variant, measure it, gate it, and publish what passes",
    )
    all_.add_argument(
        "--on", metavar="ray://HOST:PORT", help="run the stages on a Ray cluster that shares --out or --store"
    )
    commands.add_parser(
        "plan",
        parents=parents,
        help="tell what `all` would run and why, and what time, disk and memory it would take",
    )
    commands.add_parser("list", parents=[out, json_flag], help="list the published variants with their facts")
    inspect = commands.add_parser("inspect", parents=[json_flag], help="show one variant's manifest and gate")
    inspect.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder of a variant")
    verify = commands.add_parser(
        "verify", parents=[out, json_flag], help="hash every file again and name what has changed"
    )
    verify.add_argument(
        "artifacts",
        type=Path,
        nargs="*",
        metavar="ARTIFACT",
        help="folders of variants; default every one below --out",
    )
    _add_select(commands, json_flag)
    publish = commands.add_parser(
        "publish",
        parents=[json_flag],
        help="send variants that passed to a folder, a registry or the Hugging Face hub",
    )
    publish.add_argument(
        "artifacts", type=Path, nargs="+", metavar="ARTIFACT", help="folders of published variants"
    )
    publish.add_argument(
        "--to", required=True, metavar="DIR|oci://HOST/REPO:TAG|hf://OWNER/NAME", help="where they go"
    )
    publish.add_argument("--key", type=Path, metavar="FILE", help="private EC key (PEM) to sign with")
    publish.add_argument("--keyless", action="store_true", help="sign as the CI job this is, by Sigstore")
    publish.add_argument(
        "--trust-config", type=Path, metavar="FILE", help="which Sigstore, if it is not the public one"
    )
    pull = commands.add_parser(
        "pull",
        parents=[out, json_flag],
        help="fetch a published variant; every hash and its signature are checked",
    )
    pull.add_argument(
        "reference", metavar="oci://HOST/REPO@sha256:…", help="what `publish` printed; or with :TAG"
    )
    pull.add_argument("--key", type=Path, metavar="FILE", help="public EC key (PEM) that must have signed it")
    pull.add_argument(
        "--identity", metavar="WHO", help="instead of a key: who must have signed it, as Sigstore certified"
    )
    pull.add_argument("--issuer", metavar="URL", help="whose word that is: this issuer of OIDC tokens")
    pull.add_argument(
        "--trust-config", type=Path, metavar="FILE", help="which Sigstore, if it is not the public one"
    )
    pull.add_argument("--unsigned", action="store_true", help="do not check its signature")
    commands.add_parser("schema", help="print the JSON Schema of recipes")
    describe(commands)
    return main


def _add_select(commands: Any, json_flag: argparse.ArgumentParser) -> None:
    select = commands.add_parser(
        "select",
        parents=[json_flag],
        epilog=EPILOG,
        help="choose the published variant to run on a device, and say why not the others",
    )
    select.add_argument(
        "--catalogue",
        default="artifacts",
        metavar="DIR|oci://HOST/REPO",
        help="folder of variants, or a repository, of which no weights are read; default artifacts",
    )
    select.add_argument("--model", metavar="NAME", help="which model, where the catalogue has several")
    select.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto (this machine, the default), cpu, rtx4090d, l4, h100, …",
    )
    select.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="what may be used, for example 6GB; default all of the device's",
    )
    select.add_argument(
        "--context", type=positive, default=2048, metavar="N", help="tokens of each sequence; default 2048"
    )
    select.add_argument("--batch", type=positive, default=1, metavar="N", help="sequences at once; default 1")
    select.add_argument(
        "--objective",
        choices=("latency", "throughput", "accuracy"),
        default="latency",
        help="what to be best at; default latency, of one request",
    )
    select.add_argument("--accuracy", type=float, metavar="PERCENT", help="least share of right answers")
    select.add_argument(
        "--explain", action="store_true", help="show the figures of every variant, not the choice's only"
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(parser(), arguments)

    def command() -> int:
        _check_names(sys.argv[1:] if arguments is None else arguments)
        # A machine that serves has none of what a build needs: these commands load no more than they use.
        module = importlib.import_module(MODULES.get(options.command, "build.commands"))
        return int(getattr(module, f"{options.command}_command")(options))

    return exit_code(command, getattr(options, "out", "a file"), resumes=True)


def _check_names(words: list[str]) -> None:
    """UserError for the name of a file that no document can hold, before any work."""
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(
                f"{word!r} is no UTF-8, which manifests and reports need: rename it, or make a link"
            )


def _bytes(text: str) -> int:
    """`6GB`, `800MB` or a number of bytes; decimal units, as limits are stated."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size such as 6GB or 800MB")
    scale: int = 1000 ** " kMGT".index(found[2] or " ")
    return round(float(found[1]) * scale)


if __name__ == "__main__":
    sys.exit(main())
