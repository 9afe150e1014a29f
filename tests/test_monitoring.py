"""What Prometheus and Grafana are told: readable metrics; rules and panels of metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve.arm.metrics import Metrics as ArmMetrics
from serve.rollout.driver import Driver
from serve.router import arm
from serve.router.metrics import Metrics
from serve.router.policy import Arm, Breaker
from serve.router.reading import parse_policy
from serve.router.record import Record
from tests.test_policy import SMALLEST

MONITORING = Path(__file__).resolve().parent.parent / "serve" / "monitoring"
NAME = re.compile(r"\b(?:router|gen_ai|arm|process)_[a-z_]+")


def sample() -> str:
    """The metrics of a router that has seen one request of each kind."""
    metrics = Metrics()
    known = {name: arm.Arm(name, Arm.model_validate({"url": "http://h:1"}), Breaker()) for name in "ab"}
    for name, mirror in (("a", False), ("b", False), ("a", True)):
        good = Record(
            0.0, "", b"GET", b"/", "e", 1, assigned=name, mirror=mirror, status=200, fallback="reset"
        )
        good.first, good.last, good.ended, good.output_tokens, good.input_tokens = 0.02, 0.5, 0.6, 9, 3
        metrics.observe(good)
        metrics.observe(
            Record(0.0, "", b"", b"", "e", 1, assigned=name, mirror=mirror, status=502, error="reset")
        )
    return metrics.text(known, 3, 4)


def test_metrics_are_read_by_prometheus_own_parser() -> None:
    families = {family.name: family for family in text_string_to_metric_families(sample())}
    assert families["router_policy_version"].samples[0].value == 3
    assert families["router_log_dropped"].samples[0].value == 4
    values = {
        (found.labels["arm"], found.labels["mirror"], found.labels["status"]): found.value
        for found in families["router_requests"].samples
    }
    assert values["a", "false", "200"] == values["a", "true", "502"] == 1
    durations = families["gen_ai_server_request_duration_seconds"]
    buckets = [
        (found.labels["le"], found.value)
        for found in durations.samples
        if found.name.endswith("_bucket") and found.labels["arm"] == "b"
    ]
    assert buckets[-1] == ("+Inf", 1)
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert dict(buckets)["0.32"] == 0
    assert dict(buckets)["0.64"] == 1


def exported(of: str) -> set[str]:
    """Names of what a router (with a rollout) or an arm shows to Prometheus."""
    if of == "arm":
        text = ArmMetrics().text().decode()
    else:
        control = Mock()
        control.router.live.policy = parse_policy(SMALLEST + "rollout: {arm: int4}\n")
        control.versions.changes = []
        text = sample() + Driver(control, print).metrics()
    return set(re.findall(r"^([a-z_]+)[{ ]", text, re.MULTILINE))


def expressions() -> list[str]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    return [rule["expr"] for rule in rules] + [
        target["expr"] for panel in panels for target in panel["targets"]
    ]


@pytest.mark.parametrize("expression", expressions())
def test_rules_and_panels_ask_for_metrics_that_exist(expression: str) -> None:
    found = set(NAME.findall(expression))
    assert found <= exported("router") | exported("arm")
    assert found or expression.startswith("up")


def test_every_metric_of_the_router_has_a_panel() -> None:
    shown = {name for expression in expressions() for name in NAME.findall(expression)}
    assert {name for name in exported("router") if not name.endswith(("_sum", "_count"))} <= shown


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if not program:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", str(MONITORING / "alerts.yaml"))
    assert done.returncode == 0, done.stderr


def test_promtool_reads_every_panel(tmp_path: Path) -> None:
    texts = [expression.replace("$__rate_interval", "5m") for expression in expressions()]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(texts)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", str(tmp_path / "rules.yaml"))
    assert done.returncode == 0, done.stderr


def alert(name: str, summary: str, after: str = "20m", **labels: str) -> dict[str, Any]:
    expected = [{"exp_labels": labels, "exp_annotations": {"summary": summary}}] if summary else []
    return {"eval_time": after, "alertname": name, "exp_alerts": expected}


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Twenty minutes of two arms: b fails a tenth, is slow and has a queue; a, rolled back, is well."""
    arms = {"a": (0, "0.5"), "b": (6, "10.0")}
    series = []
    for name, (failures, bucket) in arms.items():
        series += [
            (f'router_requests_total{{arm="{name}",mirror="false",status="200"}}', "0+60x40"),
            (f'router_failures_total{{arm="{name}",mirror="false"}}', f"0+{failures}x40"),
            (f'router_arm_healthy{{arm="{name}"}}', "1x40"),
        ]
        for le in ("0.5", "5.0", "10.0", "+Inf"):
            counted = 60 if float(le) >= float(bucket) else 0
            labels = f'arm="{name}",mirror="false",le="{le}"'
            series.append(
                (f"gen_ai_server_time_to_first_token_seconds_bucket{{{labels}}}", f"0+{counted}x40")
            )
    series += [
        ('router_rollout_status{arm="a",status="running"}', "1x24 0x16"),
        ('router_rollout_status{arm="a",status="rolled back"}', "0x24 1x16"),
        ('arm_waiting_sequences{instance="b:1",job="arm"}', "3x40"),
        ('arm_waiting_sequences{instance="a:1",job="arm"}', "0 3 0 3 0x36"),
        ('up{instance="r:1",job="router"}', "1x40"),
    ]
    slow = "The 95th percentile of arm b's time to first token is over 5 s."
    back = "The rollout of arm a was rolled back; the admin page tells why."
    queue = "The arm at b:1 has had sequences waiting for five minutes."
    tests = [
        alert("ArmErrors", "Over 5 % of the requests assigned to arm b fail.", arm="b", severity="warning"),
        alert("FirstTokenSlow", slow, arm="b", severity="warning"),
        alert("RolledBack", "", after="10m"),
        alert("RolledBack", back, after="14m", arm="a", severity="warning", status="rolled back"),
        alert("ArmQueueGrows", queue, instance="b:1", job="arm", severity="warning"),
        alert("ArmUnhealthy", ""),
        alert("RouterDown", ""),
    ]
    given = [{"series": name, "values": values} for name, values in series]
    whole = {"interval": "30s", "input_series": given, "alert_rule_test": tests}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(MONITORING / "alerts.yaml")], "tests": [whole]}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
