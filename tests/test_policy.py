"""Policies: what is refused, with which line, and what is published about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from engines.errors import UserError
from serve.__main__ import main
from serve.router.policy import Policy
from serve.router.reading import SCHEMA, parse_policy, schema

SMALLEST = """\
experiment: qwen3-vl-int4        # salt of the sticky hash
baseline: fp16
arms:
  int4: {url: "http://127.0.0.1:8082"}
  fp16: {url: "http://127.0.0.1:8081"}
split: {mode: sticky, key: "header:x-user-id", weights: {int4: 10, fp16: 90}}
groups: [{cidr: ["10.1.0.0/16"], arm: int4}]
"""


def test_smallest_policy_is_one() -> None:
    policy = parse_policy(SMALLEST)
    assert policy.arms["int4"].address == ("127.0.0.1", 8082)
    assert str(policy.groups[0].cidr[0]) == "10.1.0.0/16"


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("fp16: 90", "fp16: 89", 6, "weights sum to 99 %"),
        ("fp16: 90", "fp17: 90", 6, "no arm 'fp17'; arms are int4, fp16"),
        ("baseline: fp16", "baseline: fp17", 2, "no arm 'fp17'"),
        ("arm: int4", "arm: int5", 7, "no arm 'int5'"),
        ("10.1.0.0/16", "10.1.0.0/33", 7, "10.1.0.0/33"),
        ("10.1.0.0/16", "10.1.0.1/16", 7, "10.1.0.1/16"),
        ('["10.1.0.0/16"]', '["10.1.0.0/16", "10.1.2.0/24"]', 7, "overlaps 10.1.0.0/16 of group 1"),
        ("groups: [", "groups: [{header: x-t, values: [a, a], arm: int4},\n", 7, "already in group 1"),
        ("{cidr:", "{region: [DE], cidr:", 7, "a group is one of"),
        ('cidr: ["10.1.0.0/16"]', "region: [DE]", 7, "regions have no source"),
        ('cidr: ["10.1.0.0/16"]', "header: x-team", 7, "header and values go together"),
        ("fp16: {url:", "fp16: {urls:", 5, "unknown field arms.fp16.urls; did you mean url?"),
        ("mode: sticky", "mode: stickyy", 6, "'sticky' or 'random'"),
        ("mode: sticky", "mode: random", 6, "a random split has no key"),
        ('key: "header:x-user-id", ', "", 6, "a sticky split needs a key"),
        ("header:x-user-id", "header:X-User-Id", 6, "in lower case"),
        ("fp16: 90}", "fp16: 90, int4: 9}", 6, "'int4' is given twice"),
        ("int4: 10, fp16: 90", "int4: 10.005, fp16: 89.995", 6, "2 decimal places"),
        ("int4: 10, fp16: 90", "int4: -10, fp16: 110", 6, "greater than or equal to 0"),
        ("int4: 10, fp16: 90", "int4: nan, fp16: 90", 6, "finite"),
        ("http://127.0.0.1:8081", "https://127.0.0.1:8081", 5, "expected http://HOST:PORT"),
        ("http://127.0.0.1:8081", "http://127.0.0.1:99999", 5, "expected http://HOST:PORT"),
        ('{url: "http://127.0.0.1:8081"}', "{}", 5, "a url or an artifact"),
        ("baseline: fp16\n", "", 1, "baseline"),
        ("baseline: fp16", "baseline: &a fp16\nfallback: [*a]", 3, "no aliases"),
        ("baseline: fp16", "baseline: [fp16", 3, "not YAML"),
        ("experiment: qwen3-vl-int4", "experiment: 'a; b'", 1, "experiment"),
        ("experiment: qwen3-vl-int4", 'experiment: "a\\n"', 1, "experiment"),
    ],
)
def test_refusals_name_the_line(old: str, new: str, line: int, told: str) -> None:
    assert old in SMALLEST
    with pytest.raises(UserError) as refused:
        parse_policy(SMALLEST.replace(old, new, 1), "policy.yaml")
    assert str(refused.value).startswith(f"policy.yaml:{line}:")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


WHOLE = """\
experiment: e
baseline: fp16
arms:
  int4:
    url: http://127.0.0.1:8082/
  fp16:
    url: http://[::1]:65535
split:
  mode: sticky
  key: user
  weights:
    int4: 10
    fp16: 90
groups:
  - arm: int4
    cidr:
      - 10.1.0.0/16
      - fd00::/8
  - arm: int4
    region: [DE]
  - arm: fp16
    header: x-team
    values: [qa]
region:
  header: x-country
overrides:
  cidr: [10.0.0.0/8]
mirror:
  arm: int4
  percent: 1
fallback:
  - fp16
rollout:
  arm: int4
  steps: [1, 100]
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("baseline: fp16", "baseline: fp17", "2: baseline: no arm 'fp17'; arms are int4, fp16"),
        ("fp16: 90", "fp16: 89.5", "11: split.weights: weights sum to 99.5 %, expected 100 %"),
        ("    fp16: 90", "    fp17: 90", "13: split.weights.fp17: no arm 'fp17'; arms are int4, fp16"),
        (
            "arm: int4\n    region",
            "arm: int5\n    region",
            "19: groups.1.arm: no arm 'int5'; arms are int4, fp16",
        ),
        (
            "mirror:\n  arm: int4",
            "mirror:\n  arm: int5",
            "29: mirror.arm: no arm 'int5'; arms are int4, fp16",
        ),
        ("  - fp16", "  - fp17", "32: fallback.0: no arm 'fp17'; arms are int4, fp16"),
        ("rollout:\n  arm: int4", "rollout:\n  arm: x", "34: rollout.arm: no arm 'x'; arms are int4, fp16"),
        (
            "rollout:\n  arm: int4",
            "rollout:\n  arm: fp16",
            "34: rollout.arm: the baseline cannot be rolled out; name the candidate",
        ),
        (
            "    int4: 10\n    fp16: 90",
            "    fp16: 100",
            "11: split.weights: a rollout needs the weights of int4 and fp16, and no others",
        ),
        ("[1, 100]", "[0, 100]", "33: rollout: steps rise from above 0"),
        ("[1, 100]", "[1, 1, 100]", "33: rollout: steps rise from above 0"),
        ("[1, 100]", "[100, 1]", "33: rollout: steps rise from above 0"),
        (
            "  key: user\n",
            "",
            "8: split: a sticky split needs a key: header:NAME, api-key, or user",
        ),
        (
            "mode: sticky",
            "mode: random",
            "10: split.key: a random split has no key; remove it or set mode: sticky",
        ),
        (
            "key: user",
            "key: users",
            "10: split.key: expected header:NAME in lower case, api-key, or user, found 'users'",
        ),
        (
            "region:\n  header: x-country\n",
            "",
            "20: groups.1.region: regions have no source; add region: {header: NAME} or {database: FILE}",
        ),
        (
            "  header: x-country",
            "  header: x-country\n  database: x.mmdb",
            "24: region: regions come from one of header or database",
        ),
        (
            "    region: [DE]\n",
            "",
            "19: groups.1: a group is one of header with values, region, or cidr",
        ),
        ("    values: [qa]\n", "", "21: groups.2: header and values go together"),
        ("[qa]", "[qa, qa]", "23: groups.2.values.1: 'qa' is already in group 3"),
        ("[DE]", "[DE, DE]", "20: groups.1.region.1: 'DE' is already in group 2"),
        (
            "fd00::/8",
            "10.0.0.0/8",
            "18: groups.0.cidr.1: 10.0.0.0/8 overlaps 10.1.0.0/16 of group 1",
        ),
        (
            "127.0.0.1:8082/",
            "127.0.0.1:0",
            "5: arms.int4.url: expected http://HOST:PORT, found 'http://127.0.0.1:0'",
        ),
        (
            "[::1]:65535",
            "[::1]:65536",
            "7: arms.fp16.url: expected http://HOST:PORT, found 'http://[::1]:65536'",
        ),
        (
            "    url: http://127.0.0.1:8082/",
            "    max_requests: 1",
            "4: arms.int4: an arm needs a url or an artifact",
        ),
    ],
)
def test_a_refusal_is_the_line_the_place_and_what_is_wrong(old: str, new: str, told: str) -> None:
    assert WHOLE.count(old) == 1
    with pytest.raises(UserError) as refused:
        parse_policy(WHOLE.replace(old, new))
    assert str(refused.value) == f"policy:{told}"


def test_a_policy_that_says_all_is_one_and_stays_as_it_is() -> None:
    policy = parse_policy(WHOLE)
    assert policy.arms["int4"].url == "http://127.0.0.1:8082"
    assert policy.arms["fp16"].address == ("::1", 65535)
    with pytest.raises(ValidationError, match="frozen"):
        policy.baseline = "int4"


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "\x00", "a: [" * 5000, "[" * 300_000, "{", "? {a: b}\n: c\n"]
)
def test_what_is_no_policy_at_all_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_policy(text)


def test_published_schema_is_the_policy() -> None:
    assert SCHEMA.read_text() == schema(), "write it again: python -m serve schema > serve/router/schema.json"


def fields() -> Iterator[tuple[str, str, dict[str, object]]]:
    model = Policy.model_json_schema()
    for section in (model, *model["$defs"].values()):
        for name, field in section["properties"].items():
            yield section["title"], name, field


@pytest.mark.parametrize(("section", "name", "field"), list(fields()))
def test_fields_are_described(section: str, name: str, field: dict[str, object]) -> None:
    assert field.get("description"), f"{section}.{name}"


def test_a_broken_file_is_one_line_of_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(SMALLEST.replace("90}", "89}"))
    assert main(["compile", str(file), "--to", "nginx"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["compile", str(tmp_path / "none.yaml"), "--to", "nginx"]) == 1
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Policy"
