"""What Prometheus and Grafana are told: readable metrics; rules and panels of metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve.router import arm
from serve.router.metrics import Metrics
from serve.router.policy import Arm, Breaker
from serve.router.record import Record

MONITORING = Path(__file__).resolve().parent.parent / "serve" / "monitoring"
NAME = re.compile(r"\b(?:router|gen_ai)_[a-z_]+")


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


def named() -> set[str]:
    return set(re.findall(r"^([a-z_]+)[{ ]", sample(), re.MULTILINE))


def expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    return [rule["expr"] for rule in rules] + [
        target["expr"] for panel in panels for target in panel["targets"]
    ]


@pytest.mark.parametrize("expression", expressions())
def test_rules_and_panels_ask_for_metrics_that_exist(expression: str) -> None:
    found = set(NAME.findall(expression))
    assert found <= named()
    assert found or expression.startswith("up")


def test_every_metric_has_a_panel() -> None:
    shown = {name for expression in expressions() for name in NAME.findall(expression)}
    assert {name for name in named() if not name.endswith(("_sum", "_count"))} <= shown


def test_promtool_accepts_the_rules() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    command = [promtool, "check", "rules", str(MONITORING / "alerts.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
