from __future__ import annotations

import pytest

from apivitals.demo.plan import NORMAL, changes, faults_at, injections


def test_the_slowdown_and_the_errors_overlap_and_both_end_before_the_run():
    slow, failing = injections(100)
    assert (slow.kind, slow.route, slow.begin, slow.end) == ("latency", "/reports/{report_id}", 42, 67)
    assert (failing.kind, failing.route, failing.begin, failing.end) == (
        "errors",
        "/checkout",
        pytest.approx(58),
        pytest.approx(80),
    )


def test_changes_are_in_order_of_time():
    assert changes(injections(100)) == pytest.approx((42, 58, 67, 80))


def test_faults_in_force():
    faults = injections(120)
    first, second, third, last = changes(faults)
    assert faults_at(faults, 0) == NORMAL
    assert faults_at(faults, first) == {"report_slowdown": 8, "checkout_failures": 0.01}
    assert faults_at(faults, second) == {"report_slowdown": 8, "checkout_failures": 0.6}
    assert faults_at(faults, third) == {"report_slowdown": 1, "checkout_failures": 0.6}
    assert faults_at(faults, last) == NORMAL
