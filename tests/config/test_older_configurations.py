"""Configurations of finished runs, which commands of daily use read, in the settings of this version."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxtwin.config.compose import read_config, register, to_object
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def resolvers() -> None:
    register()


def test_settings_of_older_versions_are_left_out_or_renamed(tmp_path: Path) -> None:
    file = ROOT / "docs" / "results" / "hrsid200_map" / "config.yaml"
    assert "  workers: 0\n" in file.read_text()
    config = to_object(read_config(file), BoxtwinConfig)
    assert config.trainer.batch_threads is None
    assert config.dataset.augmentation.object_crop_fraction == 0.7
    text = file.read_text().replace("object_crop_fraction:", "focus:", 1).replace("  workers: 0", "  ema_span: 0.1")
    (tmp_path / "older.yaml").write_text(text)
    assert to_object(read_config(tmp_path / "older.yaml"), BoxtwinConfig).dataset == config.dataset
    (tmp_path / "other.yaml").write_text(text.replace("ema_span: 0.1", "ema_span: 0.2"))
    with pytest.raises(InputError, match=r"trainer\.ema_span is no setting any more; its value is always 0\.1"):
        read_config(tmp_path / "other.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InputError, match=r"broken\.yaml is not readable as YAML"):
        read_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(InputError, match="is no configuration of a run"):
        read_config(tmp_path / "list.yaml")
