"""A headless Chromium for the pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from fullfed.reports.comparison_page import comparison_page
from fullfed.reports.pages import write_page

FLAGS = (
    "--headless",
    "--no-sandbox",  # it does not start as root otherwise
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = "the packages chromium and chromium-driver are not installed"
        if os.environ.get("FULLFED_SHARED"):
            pytest.fail(f"{reason}: with FULLFED_SHARED the pages must be tested")
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    with webdriver.Chrome(options, Service(driver)) as session:
        yield session


@pytest.fixture
def open_page(chromium: webdriver.Chrome, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page, or a comparison's, from disk; the console stays empty all the while."""

    def open_at(
        page: dict[str, Any] | str, width: int = 1200, dark: bool = False
    ) -> webdriver.Chrome:
        path = tmp_path / "page.html"
        write_page(page if isinstance(page, str) else comparison_page(page), path)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        chromium.get(path.as_uri())
        # Whatever the first layout changes (a scroll bar, say) is drawn by the second frame.
        chromium.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
        chromium.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
        return chromium

    yield open_at
    assert chromium.get_log("browser") == []
