"""`/docs` in a real browser: light and dark, and on a phone."""

from pathlib import Path

import pytest

from tests.browser import page
from tests.system_under_test import open_system, settings


@pytest.mark.parametrize(("scheme", "background"), [("light", "rgba(0, 0, 0, 0)"), ("dark", "rgb(27, 31, 36)")])
@pytest.mark.parametrize("width", [390, 1280])
async def test_the_documentation_is_shown_in_the_colours_that_the_reader_prefers(
    scheme: str, background: str, width: int, tmp_path: Path
) -> None:
    async with (
        open_system(settings(tmp_path, version="2026.11")) as system,
        page(system.url, color_scheme=scheme, viewport={"width": width, "height": 800}) as opened,
    ):
        await opened.goto("/")
        assert opened.url.endswith("/docs"), "the root leads there"
        await opened.wait_for_selector("#docs .opblock")
        found = await opened.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert found == background
        assert "2026.11" in await opened.inner_text("#docs .info")
        wider = await opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, "nothing is cut off on a phone"
