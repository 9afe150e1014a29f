"""docs/reference is what the schemas say now."""

from __future__ import annotations

import runpy

import pytest

from tests.conftest import ROOT

WRITE = runpy.run_path(str(ROOT / "docs" / "reference" / "write.py"))


@pytest.mark.parametrize("name", WRITE["PAGES"])
def test_pages_are_of_the_schemas(name: str) -> None:
    assert (ROOT / "docs" / "reference" / f"{name}.md").read_text() == WRITE["page"](name), "make reference"


def test_sections_lists_and_mappings_are_followed() -> None:
    page = WRITE["page"]("policy")
    assert "| `arms.NAME.timeouts.connect_s` | number > 0 | `3.0` | Until a connection stands. |" in page
    assert "| `groups[].arm` | text | required | Where its requests go. |" in page
    assert '| `split.mode` | `sticky`, `random` | `"sticky"` |' in page
