"""Headless Chromium for tests of pages; a test module names this one in `pytest_plugins`.

A browser is not a Python package: `chromium` or `google-chrome` is taken from PATH, and where there is none the tests
are skipped by name. QUANTIZE_BROWSER=required makes that a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

#: Names of the browser, in the order of preference.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = ""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed"
    if path is None:
        missing = f"no browser on PATH ({', '.join(BROWSERS)})"
    if missing:
        if os.environ.get("QUANTIZE_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        # The page is ours and loads nothing; a container's root has no sandbox to give.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()
