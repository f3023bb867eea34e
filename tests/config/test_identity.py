from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import InterpolationToMissingValueError

from boxtwin.config.compose import register, to_object, unknown_setting
from boxtwin.config.identity import (
    FIRST_NAMES,
    FIRST_PLACES,
    REMOVED_SETTINGS,
    WITHOUT,
    current_target,
    defining_values,
    short_hash,
)
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.sample import Dataset
from boxtwin.errors import InputError
from boxtwin.labels.carry import CarryLabels
from boxtwin.labels.method import Variations
from boxtwin.labels.options import LabelOptions
from boxtwin.run.generators import make_generator
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM

ROOT = Path(__file__).parents[2]
GENERATORS = sorted(path.stem for path in (ROOT / "conf" / "generator").glob("*.yaml"))
STAYED = ("controls", "diffusers_pipelines.layouts")  # modules that never moved
# Hashes of runs with two variations of each image by propagated labels, as runs were recorded before modules moved.
RECORDED = {
    "copy_paste": "640a5582",
    "folder": "ab7ebbf9",
    "img2img": "3e814484",
    "inpaint_background": "42caf9b0",
    "inpaint_pretrained": "4460c2b3",
    "openai_edit": "05126014",
    "openai_variations": "1d6f4e0c",
    "pixel_ddpm": "8c266828",
    "pixel_ddpm_joint": "17fafec8",
    "pixel_ddpm_layout": "5e76796e",
    "pixel_ddpm_sketch": "996cdaa0",
    "repeat": "a3049795",
    "sd_variations": "bc749783",
    "unclip": "c4891749",
    # Their module was another one before.
    "edit": "1f333d30",
    "text_to_image": "6836c266",
}


@pytest.mark.parametrize("generator", RECORDED)
def test_runs_keep_their_hash_when_modules_move(generator: str) -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"generator={generator}", "variations='2'"])
    values = defining_values(config)
    assert short_hash(values) == RECORDED[generator]


def test_stores_keep_their_key_when_settings_of_labels_are_renamed() -> None:
    # The names and values that keys of stores were first made of.
    first = {"new_objects": "refuse", "sure": 0.6, "gone": 0.3, "match": 0.5, "better": 0.15, "search": 12}
    assert (
        CarryLabels(LabelOptions(), Variations(Dataset("a", (), (), (), ""), "repeat", "carried")).identity() == first
    )


REMOVED = [f"labels.{name}" for name in REMOVED_SETTINGS["labels"]]
REMOVED += [first for setting, first in FIRST_NAMES.items() if setting in REMOVED]
RENAMED = {
    first: f"{first} has been renamed: write {now}" for now, first in FIRST_NAMES.items() if first not in REMOVED
}


@pytest.mark.parametrize("setting", [*RENAMED, *WITHOUT, *REMOVED])
def test_a_setting_that_was_renamed_or_removed_is_refused_by_name(setting: str) -> None:
    said = RENAMED.get(setting, f"{setting} is no setting any more")
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        with pytest.raises(HydraException) as caught:
            compose("config", [f"{setting}=1"])
        added = compose("config", [f"+{setting}=1"])
    assert str(unknown_setting(caught.value)).startswith(said)
    if not setting.startswith("generator."):  # which takes any setting until it is built
        with pytest.raises(InputError, match=said):
            to_object(added, BoxtwinConfig)


@pytest.mark.parametrize(
    ("word", "advice"),
    [("generator=pixel_dppm", "did you mean pixel_ddpm?"), ("split=s3", ""), ("labels=zzz", "")],
)
def test_a_misspelt_option_is_named_with_its_neighbour_and_all_others(word: str, advice: str) -> None:
    register()
    group = word.partition("=")[0]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("config", [word])
    first, others = str(unknown_setting(caught.value)).split("\n")
    assert first.startswith(f"there is no {word}{'; ' if advice else ''}{advice}")
    assert {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")} <= set(others.partition("of ")[2].split(", "))


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("dataset=coco", "dataset.build.seed"),
        ("dataset=hrsid", "+dataset.build.images"),
        ("pretraining=labelled_images", "pretraining.dataset.build.seed"),
    ],
)
def test_a_setting_below_one_that_is_null_is_named(option: str, setting: str) -> None:
    """OmegaConf ends with an assertion of its own there."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), pytest.raises(AssertionError) as caught:
        compose("config", [option, f"{setting}=1"])
    name = setting.lstrip("+")
    assert str(unknown_setting(caught.value)).startswith(f"{name} cannot be set: {name.rpartition('.')[0]} is null")
    assert unknown_setting(AssertionError("another")) is None


def test_a_value_that_another_setting_takes_is_asked_for() -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["experiment=hrsid200"])
    with pytest.raises(InterpolationToMissingValueError) as caught:
        assert config.split.file
    assert str(unknown_setting(caught.value)).startswith("these settings need a value: dataset.root ")


@pytest.mark.parametrize("option", ["none", "variations", "sar_scenes"])
def test_a_sweep_over_pretrainings_may_set_what_is_simulated(option: str) -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain, more = (
            to_object(
                compose("config", ["dataset=hrsid", "dataset.root=x", f"pretraining={option}", *words]), BoxtwinConfig
            )
            for words in ([], ["pretraining.dataset.build.images=24"])
        )
    assert (defining_values(plain) == defining_values(more)) == (option != "sar_scenes")
    assert more.pretraining.simulates == (option != "variations")


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("trainer.step", "did you mean trainer.steps?"),
        ("variation", "did you mean variations?"),
        ("detector.imagesize", "did you mean detector.image_size?"),
        ("split.tst", "did you mean split.test?"),
        ("zzzzzz", "--cfg job shows all settings"),
    ],
)
def test_a_misspelt_setting_is_named_with_its_neighbour(setting: str, advice: str) -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        with pytest.raises(HydraException) as caught:
            compose("config", [f"{setting}=1"])
        added = compose("config", [f"+{setting}=1"])
    expected = f"there is no setting {setting}; {advice}"
    assert str(unknown_setting(caught.value)) == expected
    with pytest.raises(InputError) as refused:
        to_object(added, BoxtwinConfig)
    assert str(refused.value) == expected


def test_a_generator_file_of_an_older_version_may_hold_constants() -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        old = {"feather": 8, "pastes": 4}
        config = to_object(compose("config", ["variations='2'", "generator=copy_paste"]), BoxtwinConfig)
    config.generator |= old
    assert make_generator(config).name == "copy_paste"
    config.generator |= {"feather": 9, "pastes": 5}
    with pytest.raises(InputError, match=r"generator\.feather \(always 8\), generator\.pastes \(always 4\)"):
        make_generator(config)


def test_every_generator_is_found_where_it_was_and_is() -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        targets = {compose("config", [f"generator={name}"]).generator._target_ for name in GENERATORS}
    moved = {target for target in targets if not any(f".{place}." in target for place in STAYED)}
    places = {target.removeprefix("boxtwin.synthesis.") for target in moved}
    assert {place if place in FIRST_PLACES else place.rpartition(".")[0] for place in places} == set(FIRST_PLACES)
    first = {
        f"boxtwin.synthesis.{FIRST_PLACES.get(place) or FIRST_PLACES[module] + '.' + name}"
        for place in places
        for module, _, name in [place.rpartition(".")]
    }
    assert len(first) == len(moved)
    assert not first & moved
    assert {current_target(target) for target in first} == moved
    assert {current_target(target) for target in targets} == targets
    assert current_target("mine.Folder") == "mine.Folder"


def test_a_file_of_an_older_version_builds_its_generator_as_the_same_run() -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        first = "boxtwin.synthesis.pixel_ddpm.PixelDDPM"
        config = compose("config", ["generator=pixel_ddpm", "variations='2'", f"generator._target_={first}"])
    assert isinstance(make_generator(to_object(config, BoxtwinConfig)), PixelDDPM)
    assert short_hash(defining_values(config)) == RECORDED["pixel_ddpm"]


def test_how_a_model_is_loaded_defines_a_run_where_pixels_change() -> None:
    register()
    run = ["variations='2'", "generator=img2img"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain, same, other = (
            defining_values(compose("config", [*run, *more]))["generator"]
            for more in (
                [],
                ["generator.load.offload=model", "generator.load.compile=true", "generator.load.slicing=true"],
                ["generator.load.variant=fp16"],
            )
        )
    assert same == plain
    assert "load" not in plain
    assert other == plain | {"load.variant": "fp16"}
