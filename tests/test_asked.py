"""Which combinations of a sweep are one run, and which are two though they share a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from boxtwin.config import register
from boxtwin.sweep import quote_numbers
from boxtwin.sweeper import asked

ROOT = Path(__file__).parents[1]


@pytest.fixture
def key():
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda line: asked(compose("config", quote_numbers(line.split(), ROOT / "conf" / "variations")))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("variations=0 generator=repeat", "variations=0 generator=copy_paste", True),
        ("variations=0 generator=repeat", "variations=0", True),
        ("variations=2 generator=repeat", "variations=2 generator=copy_paste", False),
        # Found by the content of files, these are in no folder's name.
        ("variations=0 detector.weights=a", "variations=0 detector.weights=b", False),
        ("variations=0 dataset.root=a", "variations=0 dataset.root=b", False),
        ("variations=0 study=a", "variations=0 study=b", False),
        ("variations=0 seed=0", "variations=0 seed=1", False),
    ],
)
def test_what_is_asked_for(key, one, other, same):
    assert (key(one) == key(other)) == same
