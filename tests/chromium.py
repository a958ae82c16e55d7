"""A headless Chromium that reaches no network but what a test names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def chromium_driver(config: pytest.Config, *, reaches: str = "") -> Iterator[Any]:
    """Selenium's driver; skips, or fails where ``--require-browser`` says so, where there is no Chromium.

    Args:
        reaches: a host that it may reach; every other name but a file's leads nowhere.
    """
    if not (chromium := shutil.which("chromium")) or not (driver := shutil.which("chromedriver")):
        reason = "there is no Chromium: apt-get install chromium chromium-driver (make browser)"
        pytest.fail(reason) if config.getoption("require_browser") else pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    words = [
        "--window-size=1300,1600",
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND" + (f", EXCLUDE {reaches}" if reaches else ""),
    ]
    for word in [*words, "--no-sandbox"]:  # which works neither for root nor in most containers; the page is ours
        options.add_argument(word)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()
