"""Reports: of a real router's log, against figures computed otherwise; of lines that are no log; of ramps."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import UserError
from serve.__main__ import main
from serve.report.lines import read_logs
from serve.report.logs import make_report
from serve.report.page import figures, page
from serve.report.quantiles import quantiles
from serve.router import run as running
from serve.router.log import Log
from serve.router.policy import Policy
from serve.router.reading import parse_policy
from tests.scripted_arm import (
    LAST,
    STREAM,
    Asked,
    Script,
    ask,
    event,
    policy_text,
    request,
    routing,
    scripted_arm,
)
from tests.test_policy import SMALLEST
from tests.test_router import run


def lines(number: int, *, slow: float = 1.0, share: float = 0.5, version: str = "1") -> list[dict[str, Any]]:
    draw = random.Random(f"7 {version}")
    found: list[dict[str, Any]] = []
    for user in range(number):
        arm = "int4" if draw.random() < share else "fp16"
        e2e = 100 * draw.lognormvariate(0, 0.3) * (slow if arm == "int4" else 1)
        found.append(
            {
                "timestamp": f"2026-01-01T0{version}:00:{user / 1000:06.3f}Z",
                "http.response.status_code": 200,
                "feature_flag.key": "e",
                "feature_flag.result.variant": arm,
                "feature_flag.result.reason": "split",
                "feature_flag.context.id": str(user),
                "feature_flag.version": version,
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


def reported(logged: list[dict[str, Any]], tmp_path: Path, **options: Any) -> dict[str, Any]:
    file = tmp_path / "log"
    file.write_text("".join(json.dumps(line) + "\n" for line in logged))
    return figures(make_report(read_logs([file]), "fp16", **options))


def test_figures(tmp_path: Path) -> None:
    logged = lines(1000)
    logged[0] |= {"http.response.status_code": 200, "ab.fallback": "reset", "ab.arm": "other"}
    logged[1] |= {"http.response.status_code": 503, "error.type": "connect"}
    logged[2] |= {"http.response.status_code": 499, "error.type": "client_closed"}
    logged.append(logged[5] | {"ab.mirror": True})
    refused = {"timestamp": "2026-01-01T00:00:00.000Z", "http.response.status_code": 400}
    logged.append(refused | {"feature_flag.key": "e", "feature_flag.version": "1"})
    found = reported(logged, tmp_path)
    arms = found["arms"]
    assert sum(arm["requests"] for arm in arms.values()) == 1000
    assert sum(arm["failures"] for arm in arms.values()) == 2
    assert sum(arm["fallbacks"] for arm in arms.values()) == 1
    assert sum(arm["output_tokens"] for arm in arms.values()) == 5000
    assert arms["int4"]["digests"] == ["sha256:int4"]
    assert (found["unassigned"], found["mirrored"], found["left_out"]["lines"]) == (1, 1, 0)
    median = arms["int4"]["latency_ms"]["e2e latency"]["p50"]
    assert median["low"] < 100 < median["high"]
    assert found["comparisons"]["int4"]["verdict"] == "no difference is shown"
    assert found["comparisons"]["int4"]["sample_ratio_mismatch"] is None


def test_a_slower_arm_is_called_so(tmp_path: Path) -> None:
    found = reported(lines(3000, slow=1.3), tmp_path)["comparisons"]["int4"]
    assert found["verdict"] == "ttft is longer; itl is longer; e2e latency is longer"
    (step,) = found["steps"]
    assert step["ratios"]["ttft"]["low"] < 1.3 < step["ratios"]["ttft"]["high"]


def halves() -> Policy:
    return parse_policy(SMALLEST.replace("int4: 10, fp16: 90", "int4: 50, fp16: 50"))


def test_other_shares_than_the_policys_are_told(tmp_path: Path) -> None:
    policies = {"1": halves()}
    found = reported(lines(2000), tmp_path, policies=policies)["comparisons"]["int4"]
    assert found["sample_ratio_mismatch"] is False
    found = reported(lines(2000, share=0.4), tmp_path, policies=policies)["comparisons"]["int4"]
    assert "mismatch" in found["verdict"]


@pytest.mark.parametrize("known", [True, False])
def test_a_busier_hour_at_another_share_is_not_the_candidates(known: bool, tmp_path: Path) -> None:
    """Arms alike: at 10 % quick, at 50 % both half as slow again. In sum the candidate would be slower."""
    busy = lines(2000, version="2")
    for line in busy:
        for name in ("ab.ttft_ms", "ab.itl_ms", "ab.e2e_latency_ms"):
            line[name] *= 1.5
    policies = {"1": parse_policy(SMALLEST), "2": halves()} if known else {}
    found = reported(lines(4000, share=0.1) + busy, tmp_path, policies=policies)["comparisons"]["int4"]
    assert found["verdict"] == "no difference is shown"
    assert [step["share"] for step in found["steps"]] == ([0.1, 0.5] if known else [None, None])
    assert [step["versions"] for step in found["steps"]] == [["1"], ["2"]]


@pytest.mark.parametrize("n", [1, 5, 6, 71, 72, 367, 368, 1000, 50_000])
def test_quantiles_are_order_statistics_between_binomial_ranks(n: int) -> None:
    from scipy.stats import binom

    values = [float(number) for number in range(1, n + 1)]
    random.Random(n).shuffle(values)
    for name, found in quantiles(values).items():
        q = float(name[1:]) / 100
        low, high = int(binom.ppf(0.025, n, q)), int(binom.ppf(0.975, n, q)) + 1
        if not (low > 0 and high <= n):
            assert found is None
            continue
        assert found
        assert found.estimate == np.quantile(values, q, method="inverted_cdf")
        assert (found.low, found.high) == (low, high)
        assert binom.cdf(high - 1, n, q) - binom.cdf(low - 1, n, q) >= 0.95


def test_no_values_have_no_quantiles() -> None:
    assert set(quantiles([]).values()) == {None}


def test_page_escapes_and_draws(tmp_path: Path) -> None:
    file = tmp_path / "<i>"
    file.write_text(
        "".join(json.dumps(line | {"feature_flag.key": "<b>"}) + "\n" for line in lines(300)) + "<u>\n"
    )
    text = page(make_report(read_logs([file])))
    assert "<b>e" not in text
    assert "<i>" not in text
    assert "&lt;i&gt;:301: not JSON" in text
    assert text.count("<polyline") == 6


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not json\n", "not JSON"),
        (b"\n", "not JSON"),
        (b"[1]\n", "not JSON"),
        (b'"text"\n', "not JSON"),
        (b"{}\n", "timestamp: Field required"),
        (b'{"msg": "GET / 200", "level": "info"}\n', "timestamp: Field required"),
        (b"\x00\xff\xfe binary \x80\n", "not JSON"),
        (b'{"timestamp": "2026-', "is cut off"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (("ab.ttft_ms", "soon"), "ab.ttft_ms: Input should be a valid number"),
        (("ab.ttft_ms", math.nan), "ab.ttft_ms: "),
        (("ab.e2e_latency_ms", -1), "ab.e2e_latency_ms: "),
        (("http.response.status_code", "200"), "http.response.status_code: "),
        (("gen_ai.usage.output_tokens", 1e300), "gen_ai.usage.output_tokens: "),
        (("feature_flag.result.variant", ["a"]), "feature_flag.result.variant: "),
        (("timestamp", "yesterday"), "timestamp: "),
    ],
)
def test_what_is_no_log_is_counted_and_named(
    content: bytes | tuple[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = lines(40)
    if isinstance(content, tuple):
        content = json.dumps(good[0] | {content[0]: content[1]}).encode() + b"\n"
    file, text = tmp_path / "log", [json.dumps(line).encode() + b"\n" for line in good]
    cut = not content.endswith(b"\n")
    file.write_bytes(b"".join(text if cut else text[:20]) + content + b"".join([] if cut else text[20:]))
    logs = read_logs([file])
    assert (len(logs.lines), logs.left_out) == (40, 1)
    assert logs.named[0].startswith(f"{file}:{41 if cut else 21}: ")
    assert told in logs.named[0].replace("JSON: Invalid JSON", "JSON")
    assert main(["report", str(file), "-o", str(tmp_path / "page.html"), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out.splitlines()[-1])["left_out"] == {"lines": 1, "first": logs.named}
    assert "1 lines are none of a router's log" in output.err


def test_only_the_first_of_many_are_named(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x\n" * 1000)
    logs = read_logs([tmp_path / "log"])
    assert (logs.left_out, len(logs.named)) == (1000, 5)
    with pytest.raises(UserError, match=r"1000 lines were left out, the first .*log:1: not JSON"):
        make_report(logs)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "log", tmp_path / "page.html"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines(500)) + '{"cut')
    assert main(["report", str(file), "--baseline", "fp16", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["baseline"] == "fp16"
    assert "int4" in out.read_text()
    one = next(line for line in lines(40) if line["ab.arm"] == "fp16")
    (tmp_path / "one").write_text(json.dumps(one) + "\n")
    assert main(["report", str(tmp_path / "one"), "-o", str(out)]) == 0
    assert "nothing to compare: no arm but the baseline was asked" in capsys.readouterr().err
    for wrong in (["--baseline", "no"], ["--experiment", "no"], ["--state", str(tmp_path)]):
        assert main(["report", str(file), "-o", str(out), *wrong]) == 1
    assert main(["report", str(tmp_path / "none"), "-o", str(out)]) == 1


def speaking(seconds: float, seed: int, told: Counter[str], name: str) -> Script:
    """An arm that streams two tokens after about so long; every twentieth request fails."""
    draw = random.Random(seed)

    async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told[name] += 1
        if told[name] % 20 == 0:
            told[f"{name} failed"] += 1
            writer.write(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n")
            return
        told[f"{name} output"] += (tokens := draw.randrange(2, 9))
        await asyncio.sleep(seconds * draw.lognormvariate(0, 0.2))
        writer.write(STREAM + event('{"choices": [{"delta": {"content": "x"}}]}'))
        await asyncio.sleep(seconds * draw.lognormvariate(0, 0.2))
        usage = json.dumps({"prompt_tokens": 3, "completion_tokens": tokens})
        writer.write(event(f'{{"choices": [], "usage": {usage}}}') + event("[DONE]") + LAST)

    return script


def test_report_on_a_real_routers_rotated_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stand-in arms, a being slower: every figure against numpy, scipy and statsmodels."""
    monkeypatch.setattr(running, "Log", partial(Log, rotate_bytes=200_000, keep=9))
    told: Counter[str] = Counter()
    users = [f"u{number}" for number in range(500)] * 3

    async def traffic() -> None:
        async with (
            scripted_arm(speaking(0.03, 1, told, "a")) as a,
            scripted_arm(speaking(0.02, 2, told, "b")) as b,
            routing(tmp_path, policy_text(a, b, weight_a=40)) as router,
        ):

            async def client() -> None:
                while users:
                    await ask(router.port, request(X_User_Id=users.pop()))

            await asyncio.gather(*(client() for _ in range(32)))

    run(traffic())
    files = sorted(tmp_path.glob("log*"))
    assert len(files) > 2, "rotated"
    out = tmp_path / "page.html"
    command = ["report", *map(str, files), "--state", str(tmp_path / "state"), "-o", str(out), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    logged = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(logged) == 1500
    for name in ("a", "b"):
        arm = found["arms"][name]
        assert arm["requests"] == told[name]
        assert arm["failures"] == told[f"{name} failed"] == arm["statuses"]["500"]
        assert arm["output_tokens"] == told[f"{name} output"]
        assert arm["input_tokens"] == 3 * (told[name] - told[f"{name} failed"])
        for measure, label in (("ttft", "ttft"), ("itl", "itl"), ("e2e_latency", "e2e latency")):
            values = np.sort(whole(logged, name, f"ab.{measure}_ms")[0])
            for q in (0.5, 0.95, 0.99):
                check_quantile(arm["latency_ms"][label][f"p{q * 100:g}"], values, q)
    comparison = found["comparisons"]["a"]
    check_ratio(comparison["steps"][0]["ratios"]["e2e latency"], logged)
    assert comparison["verdict"] == "ttft is longer; itl is longer; e2e latency is longer"
    check_shares(comparison, logged)
    assert found["left_out"]["lines"] == 0
    text = out.read_text()
    assert text.count("<polyline") == 6
    assert 10_000 < len(text) < 200_000
    assert "http" not in text.replace("http.response", ""), "nothing is loaded from elsewhere"


def whole(logged: list[dict[str, Any]], arm: str, field: str) -> tuple[list[float], list[str]]:
    """Values and users of an arm's whole answers."""
    kept = [
        line
        for line in logged
        if line["feature_flag.result.variant"] == arm and line["http.response.status_code"] == 200
    ]
    return [line[field] for line in kept], [line["feature_flag.context.id"] for line in kept]


def check_quantile(found: dict[str, float] | None, values: np.ndarray[Any, Any], q: float) -> None:
    from scipy.stats import binom

    n = len(values)
    low, high = int(binom.ppf(0.025, n, q)), int(binom.ppf(0.975, n, q)) + 1
    assert found
    assert found["estimate"] == np.quantile(values, q, method="inverted_cdf")
    assert (found["low"], found["high"]) == (values[low - 1], values[high - 1])


def check_ratio(found: dict[str, float], logged: list[dict[str, Any]]) -> None:
    """Robbins' mixture at 0.05 / 3 / 2, for the first step, on variances of statsmodels."""
    import statsmodels.api as sm

    means, variance = [], 0.0
    for arm in ("a", "b"):
        values, users = whole(logged, arm, "ab.e2e_latency_ms")
        fitted = sm.OLS(np.log(values), np.ones(len(values))).fit(
            cov_type="cluster", cov_kwds={"groups": np.unique(users, return_inverse=True)[1]}
        )
        means.append(fitted.params[0])
        variance += fitted.bse[0] ** 2
    scale = math.log(1.15) ** 2
    bound = math.log(math.sqrt((variance + scale) / variance) / (0.05 / 6))
    radius = math.sqrt(2 * variance * (variance + scale) / scale * bound)
    difference = means[0] - means[1]
    expected = [math.exp(difference + end * radius) for end in (0, -1, 1)]
    assert [found[end] for end in ("estimate", "low", "high")] == pytest.approx(expected, rel=1e-3)


def check_shares(comparison: dict[str, Any], logged: list[dict[str, Any]]) -> None:
    from scipy.stats import binomtest

    assigned = {line["feature_flag.context.id"]: line["feature_flag.result.variant"] for line in logged}
    candidates = sum(arm == "a" for arm in assigned.values())
    assert binomtest(candidates, len(assigned), 0.4).pvalue > 0.001
    assert comparison["sample_ratio_mismatch"] is False
    assert comparison["steps"][0]["users"] == {
        "baseline": len(assigned) - candidates,
        "candidate": candidates,
    }
