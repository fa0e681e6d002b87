"""What running the blocks of the pages cannot tell: links, the index, and blocks of a kind that nothing runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def anchors(page):
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if path.startswith(("https://", "http://")):
            continue
        where = (page.parent / path).resolve() if path else page
        assert where.exists(), target
        assert not anchor or anchor in anchors(where), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_of_a_kind_that_is_run(page):
    assert {language for language, _text in _FENCE.findall(page.read_text())} <= {"python", "console", "sh"}


def test_every_page_is_found_from_the_index():
    listed = (ROOT / "docs/index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in listed


def test_the_readme_begins_with_the_two_commands_that_set_everything_up():
    first, second, *_ = _FENCE.findall((ROOT / "README.md").read_text())

    assert (first[0], second[0]) == ("sh", "sh")
    assert len(first[1].splitlines()) == len(second[1].splitlines()) == 1
    assert first[1].endswith(".venv/bin/gpuserve quickstart\n")
    assert second[1].endswith(".venv/bin/python -m nox\n")
