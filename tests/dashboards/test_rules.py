"""The alerts: accepted by promtool, and each fires when it should and not when it should not."""

from __future__ import annotations

import pytest
import yaml
from boards import BOARDS, ROOT

from backends.stores import promtool

RULES = ROOT / "rules" / "loadspan.yaml"
TESTS = ROOT / "rules" / "tests" / "loadspan.yaml"


def alerts() -> list[dict[str, object]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule]


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_do_what_their_tests_say() -> None:
    done = promtool("test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_seen_to_fire() -> None:
    checks = [check for test in yaml.safe_load(TESTS.read_text())["tests"] for check in test.get("alert_rule_test", ())]
    fires = {check["alertname"] for check in checks if check["exp_alerts"]}
    assert fires == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_to_do_and_where(alert: dict[str, dict[str, str]]) -> None:
    assert set(alert["annotations"]) == {"summary", "description"}
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    assert any(board in alert["annotations"]["description"] for board in BOARDS)


def test_only_rules_lie_where_prometheus_looks_for_rules() -> None:
    assert [path.name for path in RULES.parent.glob("*.yaml")] == ["loadspan.yaml"]
