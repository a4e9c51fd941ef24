"""A real Chromium, for what only a browser shows."""

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

_CHROME = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


def find_browser() -> str:
    """Return the path of Chromium or Chrome."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    found = found or (str(_CHROME) if _CHROME.exists() else None)
    assert found is not None, (
        "Chromium is needed: `make test` installs it (Debian: apt-get install chromium; macOS: brew install google-chrome)"
    )
    return found


@asynccontextmanager
async def browser() -> AsyncGenerator[Browser, None]:
    """Run a browser inside the `async with` block."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox does not work for root
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        try:
            yield started
        finally:
            await started.close()


@asynccontextmanager
async def page(url: str, *, errors: list[str] | None = None, **options: Any) -> AsyncGenerator[Page, None]:
    """Open a page of a site. What it logs as an error fails the test at the end, or is appended to `errors`."""
    async with browser() as started:
        context = await started.new_context(base_url=url, **options)
        opened = await context.new_page()
        found: list[str] = [] if errors is None else errors
        opened.on("pageerror", lambda error: found.append(str(error)))
        opened.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
        yield opened
        assert errors is not None or found == [], found
