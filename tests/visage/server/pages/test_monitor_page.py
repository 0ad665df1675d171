"""GET /monitor in a real browser: readable when empty, up to date by itself, and honest when the
server is gone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from docs.make_screenshots import PHONE, window
from tests.visage.server.pages.tab import accessibility_faults, photo, watched

EMPTY = {
    "server": {
        "requests": {},
        "refusals": {},
        "photos": 0,
        "photos_without_face": 0,
        "faces": 0,
        "no_face_rate": None,
    },
    "latency_seconds": {"answers": 0, "p50": None, "p90": None, "p99": None},
    "minutes": [],
    "drift": None,
    "registry": None,
}


def changed(page: Page, **changes: Any) -> None:
    """Lets the tab see another /statistics: `changes` replaces entries, of an entry that is a
    dictionary only those that it names."""

    def fulfill(route: Route) -> None:
        document = route.fetch().json()
        for name, value in changes.items():
            both = isinstance(value, dict) and isinstance(document[name], dict)
            document[name] = document[name] | value if both else value
        route.fulfill(json=document)

    page.route("**/statistics", fulfill)


def test_an_idle_server_says_that_nothing_was_asked(page: Page, address: str) -> None:
    changed(page, **EMPTY, values={"served": None, "num_served": 0, "training": None})
    page.route("**/metrics", lambda route: route.fulfill(body=""))
    page.goto(f"{address}monitor")

    expect(page.locator(".tile-value")).to_have_text(["0", "–", "–", "0", "0"])
    expect(page.locator("#minutes")).to_have_text("No request in the last hour.")
    expect(page.locator("#seconds")).to_have_text("No response yet.")
    expect(page.locator("#values")).to_contain_text("No face was served yet")
    expect(page.locator("#registry")).to_contain_text("from a folder")
    assert "undefined" not in page.locator("main").inner_text()
    assert "NaN" not in page.locator("main").inner_text()


def test_new_requests_appear_by_themselves(page: Page, address: str) -> None:
    page.clock.install()
    page.goto(f"{address}monitor")
    requests = page.locator(".tile-value").first
    expect(requests).to_have_text(re.compile(r"^\d+$"))
    before = int(requests.inner_text())

    file = photo(2)
    sent = page.request.post(f"{address}predict", multipart={"photo": file})
    assert sent.ok
    page.clock.run_for(6_000)
    expect(requests).to_have_text(str(before + 1))
    expect(page.locator("#minutes .chart")).to_be_visible()
    expect(page.locator("#seconds .chart")).to_be_visible()
    expect(page.locator("#values .chart")).to_be_visible()


def test_paused_it_asks_nothing(page: Page, address: str) -> None:
    page.clock.install()
    page.goto(f"{address}monitor")
    page.locator(".tile").first.wait_for()
    page.get_by_role("button", name="Pause").click()

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(20_000)
    assert asked == []
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#updated")).to_contain_text("Updated")
    assert asked


def test_a_server_that_is_gone_is_named_and_comes_back(page: Page, address: str) -> None:
    page.clock.install()
    page.goto(f"{address}monitor")
    page.locator(".tile").first.wait_for()
    page.route("**/statistics", lambda route: route.abort())
    page.clock.run_for(6_000)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
    expect(page.locator(".tile")).to_have_count(5)

    page.unroute("**/statistics")
    page.clock.run_for(6_000)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_drift_is_shown_beside_its_limits(page: Page, address: str) -> None:
    shares = [0.05] * 20
    drift = {
        "num_faces": 431,
        "value_mean": 41.2,
        "reference_value_mean": 33.3,
        "value_psi": 0.253,
        "feature_distance": 0.043,
    }
    changed(
        page,
        values={"served": shares, "num_served": 431, "training": shares},
        drift=drift,
    )
    page.goto(f"{address}monitor")

    expect(page.locator(".verdict")).to_have_text(["beyond the limit", "inside the limit"])
    expect(page.locator("#drift")).to_contain_text("431 served faces: 41.2 years")
    expect(page.locator("#values .legend")).to_have_text("431 served facestraining faces")
    page.locator("#values summary").click()
    expect(page.locator("#values tbody tr")).to_have_count(20)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_fault_against_the_rules_of_accessibility(
    browser: Browser, address: str, scheme: str
) -> None:
    with window(browser, size=PHONE, scheme="dark" if scheme == "dark" else "light") as page:
        with watched(page, address):
            page.goto(f"{address}monitor")
            page.locator(".tile").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
        assert accessibility_faults(page) == []


def test_champion_and_challengers_stand_beside_each_other(page: Page, address: str) -> None:
    """The document as `RegisteredSource.registry` of model_registry/serve.py makes it."""
    version = {"created_ms": 1_790_000_000_000, "decision": None, "reasons": None}
    refused = {"decision": "refused", "decided_against": "1", "reasons": "MAE is higher by 0.8"}
    versions = [
        version
        | refused
        | {
            "version": 2,
            "metrics": {"test.mae": 5.5, "test.mae.low": 5.2, "test.coverage_80": 0.8},
        },
        version | {"version": 1, "decided_against": None, "metrics": {"test.mae": 4.7}},
    ]
    event = {"time": "2026-11-28T05:00:00+0000", "action": "refused", "version": 2, "reason": "MAE"}
    registry = {
        "name": "drawn",
        "champion": 1,
        "challenger": 2,
        "versions": versions,
        "history": [event],
    }
    changed(page, registry=registry)
    page.goto(f"{address}monitor")

    rows = page.locator("#registry table").first.locator("tbody tr")
    expect(rows.nth(0)).to_contain_text(re.compile("2.*challenger.*5.50 years.*80.0 %.*refused"))
    expect(rows.nth(0)).to_contain_text("MAE is higher by 0.8.")
    expect(rows.nth(1)).to_contain_text(re.compile("1.*champion.*4.70 years.*not compared yet"))
    page.locator("#registry summary").click()
    expect(page.locator("#registry details")).to_contain_text("28 Nov 2026")
    assert accessibility_faults(page) == []
