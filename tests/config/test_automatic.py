"""The value auto: what it becomes, from which split and data set, and that everything else stays as typed."""

import json
from pathlib import Path

import pytest

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.automatic import BEST, resolve_auto
from boxtwin.config.compose import register
from boxtwin.errors import InputError

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "train.py"


def resolved(*words: str, script: Path = TRAIN) -> list[str]:
    register()
    return resolve_auto(script, quote_numbers(words, ROOT / "conf" / "variations"))[0]


@pytest.fixture
def radar(tmp_path: Path) -> tuple[str, ...]:
    """Overrides of a data set of radar images of one class."""
    (tmp_path / "annotations.json").write_text(json.dumps({"categories": [{"id": 1, "name": "ship"}]}))
    return "dataset=coco", f"dataset.root={tmp_path}", "dataset.speckle=amplitude", "dataset.name=radar"


TEN = ("split.train=40", "split.train_size=10")


@pytest.mark.parametrize(
    ("sizes", "row"),
    [
        (["split.train=40", "split.train_size=10"], BEST[0]),
        (["split.train=40", "split.train_size=40,10"], BEST[0]),
        (["split=s1,s2"], BEST[1]),
        (["split=s2"], BEST[1]),
        (["split=s1"], BEST[2]),
    ],
)
def test_the_smallest_split_decides_for_all_runs(sizes: list[str], row: object, radar: tuple[str, ...]) -> None:
    asked = ["generator=auto", "variations.synthetic_fraction=auto", "trainer.steps=auto"]
    words = resolved("-m", *radar, *sizes, *asked, "seed=0,1")
    assert isinstance(row, type(BEST[0]))
    assert words[-4:-1] == [
        f"generator={row.generator}",
        f"variations.synthetic_fraction={row.synthetic_fraction}",
        f"trainer.steps={row.steps}",
    ]
    assert words[: -len(asked) - 1] == ["-m", *radar, *sizes]
    assert words[-1] == "seed=0,1"


def test_simulation_is_for_radar_images_of_one_class(radar: tuple[str, ...], tmp_path: Path) -> None:
    asked = ("pretraining=none,auto", "pretraining.share=auto")
    assert resolved(*radar, *TEN, *asked)[-2:] == ["pretraining=none,sar_scenes", "pretraining.share=0.25"]
    optical = resolved(*radar, *TEN, "dataset.speckle=null", *asked)
    assert optical[-2:] == ["pretraining=none,none", "pretraining.share=0.0"]
    assert resolved(*radar, "split=s2", "pretraining=auto")[-1] == "pretraining=sar_scenes"
    assert resolved("dataset=sar_scenes", "pretraining=auto")[-1] == "pretraining=none"
    assert resolved(*radar, *TEN, "pretraining=none", "pretraining.share=auto")[-1] == "pretraining.share=0.0"
    two = [{"id": 1, "name": "ship"}, {"id": 2, "name": "buoy"}]
    (tmp_path / "annotations.json").write_text(json.dumps({"categories": two}))
    assert resolved(*radar, *TEN, "pretraining=auto")[-1] == "pretraining=none"


def test_steps_are_a_multiple_of_the_validations(radar: tuple[str, ...]) -> None:
    assert resolved(*radar, "trainer.validations=5", "trainer.steps=auto")[-1] == "trainer.steps=805"


def test_other_words_and_scripts_are_left_alone(radar: tuple[str, ...]) -> None:
    for words in (["trainer.accelerator=auto"], ["trainer.precision=auto", "study=auto"], ["generator=repeat"]):
        assert resolved(*words) == words
    assert resolved("generator=auto", script=ROOT / "compare.py") == ["generator=auto"]
    assert resolved(*radar, "generator=auto", script=ROOT / "generate.py")[-1] == "generator=copy_paste"


def test_what_cannot_be_resolved_is_one_error(tmp_path: Path) -> None:
    absent = ("dataset=coco", f"dataset.root={tmp_path}", "dataset.speckle=amplitude", "dataset.name=radar", *TEN)
    with pytest.raises(InputError, match=r"annotations\.json cannot be used"):
        resolved(*absent, "pretraining=auto")
    for words in (["experiment=hrsid200"], ["dataset=coco", "dataset.build.seed=1"], ["dataset.nme=1"]):
        with pytest.raises(InputError, match=r"dataset\.(root|build|nme)"):
            resolved("pretraining=auto", *words)
    with pytest.raises(InputError, match="there is no dataset=nothing"):
        resolved("dataset=nothing", "pretraining=auto")


def test_swept_values_and_split_files_count(radar: tuple[str, ...], tmp_path: Path) -> None:
    # experiment=study sweeps 10 and 40 images by itself.
    assert resolved("-m", "experiment=study", "trainer.steps=auto")[-1] == f"trainer.steps={BEST[0].steps}"
    typed = resolved("-m", "experiment=study", "split.train_size=40", "trainer.steps=auto")
    assert typed[-1] == f"trainer.steps={BEST[1].steps}"
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"tiny": {"train": ["a.png"] * 12, "val": [], "test": []}}))
    words = (*radar, f"split.file={file}", "split.name=tiny", "generator=auto", "variations.synthetic_fraction=auto")
    assert resolved(*words)[-1] == f"variations.synthetic_fraction={BEST[0].synthetic_fraction}"
    with pytest.raises(InputError, match=r"split\.file"):
        resolved(*radar, f"split.file={file}", "split.name=absent", "generator=auto")
    assert resolved("-m", *radar, "trainer.validations=5,6", "trainer.steps=auto")[-1] == "trainer.steps=810"
    listed = resolved("-m", *radar, "pretraining=none,sar_scenes", "pretraining.share=auto")
    assert listed[-1] == "pretraining.share=0.25"


def test_simulation_is_not_taken_where_it_is_not_measured(radar: tuple[str, ...]) -> None:
    assert resolved(*radar, "split=s1", "pretraining=auto")[-1] == "pretraining=none"
