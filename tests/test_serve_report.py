"""Reports from logs: figures against numbers known beforehand, verdicts, and lines that are no log."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from engines.errors import UserError
from serve.__main__ import main
from serve.report.logs import make_report, read_lines
from serve.report.page import figures, page, quantile
from serve.router.reading import parse_policy
from tests.test_policy import SMALLEST


def lines(number: int, *, slow: float = 1.0, share: float = 0.5) -> list[dict[str, Any]]:
    draw = random.Random(7)
    found: list[dict[str, Any]] = []
    for user in range(number):
        arm = "int4" if draw.random() < share else "fp16"
        e2e = 100 * draw.lognormvariate(0, 0.3) * (slow if arm == "int4" else 1)
        found.append(
            {
                "timestamp": f"2026-01-01T00:00:{user / 1000:06.3f}Z",
                "http.response.status_code": 200,
                "feature_flag.key": "e",
                "feature_flag.result.variant": arm,
                "feature_flag.result.reason": "split",
                "feature_flag.context.id": str(user),
                "feature_flag.version": "1",
                "gen_ai.usage.input_tokens": 7,
                "gen_ai.usage.output_tokens": 5,
                "ab.arm": arm,
                "ab.artifact_digest": f"sha256:{arm}",
                "ab.ttft_ms": e2e / 4,
                "ab.itl_ms": e2e / 10,
                "ab.e2e_latency_ms": e2e,
            }
        )
    return found


def test_figures() -> None:
    logged = lines(1000)
    logged[0] |= {"http.response.status_code": 200, "ab.fallback": "reset", "ab.arm": "other"}
    logged[1] |= {"http.response.status_code": 503, "error.type": "connect"}
    logged[2] |= {"http.response.status_code": 499, "error.type": "client_closed"}
    logged.append(logged[5] | {"ab.mirror": True})
    logged.append({"timestamp": "2026-01-01T00:00:00.000Z", "http.response.status_code": 400})
    found = figures(make_report(logged, "fp16"))
    arms = found["arms"]
    assert sum(arm["requests"] for arm in arms.values()) == 1000
    assert sum(arm["failures"] for arm in arms.values()) == 2
    assert sum(arm["fallbacks"] for arm in arms.values()) == 1
    assert sum(arm["output_tokens"] for arm in arms.values()) == 5000
    assert arms["int4"]["digests"] == ["sha256:int4"]
    median = arms["int4"]["latency_ms"]["e2e latency"]["p50"]
    assert median["low"] < 100 < median["high"]
    assert found["comparisons"]["int4"]["verdict"] == "no difference is shown"
    assert found["comparisons"]["int4"]["sample_ratio_mismatch"] is None


def test_a_slower_arm_is_called_so() -> None:
    found = figures(make_report(lines(3000, slow=1.3), "fp16"))["comparisons"]["int4"]
    assert found["verdict"] == "ttft is longer; itl is longer; e2e latency is longer"
    assert found["ratios"]["ttft"]["low"] < 1.3 < found["ratios"]["ttft"]["high"]


def test_other_shares_than_the_policys_are_told() -> None:
    policy = parse_policy(SMALLEST.replace("int4: 10, fp16: 90", "int4: 50, fp16: 50"))
    assert (
        figures(make_report(lines(2000), "fp16", policies={"1": policy}))["comparisons"]["int4"][
            "sample_ratio_mismatch"
        ]
        is False
    )
    found = make_report(lines(2000, share=0.4), "fp16", policies={"1": policy})
    assert "mismatch" in figures(found)["comparisons"]["int4"]["verdict"]


def test_quantile_is_an_order_statistic() -> None:
    found = quantile([float(number) for number in range(1, 1001)], 0.95)
    assert found
    assert found.estimate == 951
    assert 930 < found.low < 951 < found.high < 970
    assert quantile([1.0] * 19, 0.5) is None


def test_page_escapes_and_draws() -> None:
    logged = [line | {"feature_flag.key": "<b>"} for line in lines(300)]
    text = page(make_report(logged))
    assert "<b>" not in text
    assert text.count("<polyline") == 6


@pytest.mark.parametrize("content", ["not json\n", "[1]\n", "{}\n", '"text"\n', "5\n"])
def test_what_is_no_log_is_refused_with_its_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(json.dumps(lines(1)[0]) + "\n" + content)
    with pytest.raises(UserError, match="log:2 is no line of a router's log"):
        list(read_lines([file]))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "log", tmp_path / "page.html"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines(500)) + '{"cut')
    assert main(["report", str(file), "--baseline", "fp16", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["baseline"] == "fp16"
    assert "int4" in out.read_text()
    for wrong in (["--baseline", "no"], ["--experiment", "no"], ["--state", str(tmp_path)]):
        assert main(["report", str(file), "-o", str(out), *wrong]) == 1
    assert main(["report", str(tmp_path / "none"), "-o", str(out)]) == 1
