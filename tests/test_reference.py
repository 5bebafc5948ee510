"""The reference pages in docs/reference are those of the code."""

import runpy

from tests.conftest import REPOSITORY


def test_the_reference_is_up_to_date() -> None:
    pages = runpy.run_path(str(REPOSITORY / "docs/build_reference.py"))["pages"]()
    on_disk = {
        path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs/reference").glob("*.md")
    }
    assert on_disk.keys() == pages.keys()
    stale = [name for name, text in pages.items() if on_disk[name] != text]
    assert not stale, "make reference writes them again"
