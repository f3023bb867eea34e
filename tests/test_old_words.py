"""Words that have been replaced do not come back: the table in CHANGELOG.md, its left column as regular expressions."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEARCHED = [
    ROOT / "README.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "docs").rglob("*.html"),
    *(ROOT / "conf").rglob("*.yaml"),
    *(file for ending in ("py", "html", "j2") for file in (ROOT / "src").rglob(f"*.{ending}")),
]


def replaced() -> list[tuple[str, str]]:
    """The rows of the table: a regular expression of what was, and what is written now."""
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| before (regular expression) | now |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        before, now = (part.strip().strip("`").replace(r"\|", "|") for part in re.split(r"(?<!\\)\|", line)[1:3])
        rows.append((before, now))
    return rows


@pytest.mark.parametrize(("before", "now"), replaced())
def test_a_replaced_word_is_used_nowhere(before: str, now: str) -> None:
    pattern = re.compile(before)
    assert pattern.search(now) is None
    hits = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for file in SEARCHED
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not hits, f"write {now}"


def test_the_table_is_read() -> None:
    assert len(replaced()) >= 20
