"""The page in the artifact viewer of a real MLflow server: drawn, searched, and nothing refused by its policy."""

from __future__ import annotations

import pytest
from page_world import PageWorld

from quantize.registries._client import asking

pytest_plugins = ["browser_fixtures", "release_fixtures"]
pytestmark = pytest.mark.slow


def test_the_artifact_viewer_shows_the_page_and_its_search_works(browser, server, tmp_path):
    world = PageWorld(tmp_path)
    world.add("int8", 0.1, load=1.31)
    report = tmp_path / "report.html"
    report.write_text(world.page(), encoding="utf-8")
    with asking(server.address) as client:
        experiment = client.create_experiment("page")
        run = client.create_run(experiment).info.run_id
        client.log_artifact(run, str(report))
        client.set_terminated(run)
    page = browser.new_page()
    wrong: list[str] = []
    # MLflow's own page may complain about itself; what is looked for is what it makes of ours.
    page.on("console", lambda m: wrong.append(m.text) if "Security Policy" in m.text or "blob:" in m.text else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{server.address}/#/experiments/{experiment}/runs/{run}/artifacts/report.html")
    frame = page.frame_locator("iframe")
    frame.locator("#flip-filters").wait_for(state="visible", timeout=120_000)
    frame.locator("#flip-search").fill("item-00012")
    assert "1 of " in (frame.locator("#flip-count").text_content() or "")
    assert frame.locator("#trade-off svg[role=img]").first.bounding_box()["width"] > 200
    frame.locator("#theme").click()
    assert "Theme: " in (frame.locator("#theme").text_content() or "")
    assert wrong == []
    page.close()
