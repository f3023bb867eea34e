"""What generate.py asks before it spends, says at the end, and makes again; what train.py leaves alone."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import MakeCoco
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from image_server import Record, image_server
from omegaconf import DictConfig, open_dict
from small_study import SMALL
from written_samples import write_sample

from boxtwin.commands import generate_preview
from boxtwin.commands.generate import contact_sheet, generate, make_variations
from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register, to_object
from boxtwin.config.identity import defining_values
from boxtwin.config.schema import BoxtwinConfig, GenerateConfig
from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.reading import Reading
from boxtwin.errors import InputError
from boxtwin.run.build import Prepared, prepare
from boxtwin.run.pretraining import variations_run

ROOT = Path(__file__).parents[2]
# The detectors that label what moves: one, of two steps.
QUICK = (
    "detector=yolov3_nano",
    "labels.detectors=1",
    "labels.agree=1",
    "detector.warmup_steps=1",
    "trainer.steps=2",
    "trainer.validations=1",
    "trainer.batch_size=2",
    "quality=false",
)
TINY_DDPM = ("generator.train_steps=2", "generator.steps=1", "generator.crop=32", "generator.channels=[8,16]")
Composed = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set that the tests share, built by the first."""
    return tmp_path_factory.mktemp("scenes") / "sar_scenes"


@pytest.fixture
def composed(tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Composed]:
    """Configurations as a root script has them, `HydraConfig` too."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):

        def with_overrides(*overrides: str, script: str = "generate", small: bool = True) -> DictConfig:
            typed = quote_numbers(
                (*((*SMALL, f"dataset.root={scenes}") if small else ()), *QUICK, f"data={tmp_path}", *overrides),
                ROOT / "conf" / "variations",
            )
            config = compose(script, typed, return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                del config["hydra"]
            return config

        yield with_overrides
    HydraConfig.instance().cfg = None


@pytest.fixture
def server() -> Iterator[Record]:
    with image_server() as record:
        yield record


def remote(server: Record) -> tuple[str, ...]:
    return (
        "generator=openai_variations",
        f"generator.base_url={server.url}",
        "generator.size=256",
        "generator.first_wait=0.01",
        "generator.max_tries=2",
    )


def prepared(config: DictConfig) -> Prepared:
    return prepare(to_object(config, GenerateConfig))


def store(tmp_path: Path) -> Path:
    (manifest,) = tmp_path.glob("synthetic/*/manifest.jsonl")
    return manifest.parent


def test_calls_that_cost_wait_for_a_yes_and_a_budget(
    composed: Composed, server: Record, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    paid = (*remote(server), "variations=2", "generator.price_usd=0.02")
    with pytest.raises(InputError) as error:
        generate(composed(*paid))
    said = str(error.value)
    assert "20 of 20 variations are missing; openai_variations makes them for about 0.40 USD; nothing was made" in said
    words = shlex.split(said.splitlines()[-1])
    assert words[:2] == ["python", "generate.py"]
    assert {*paid, "confirm=true", "split.train=6"} <= set(words)
    with pytest.raises(InputError, match=r"about 0\.40 USD, which is over budget=0\.39; nothing was made") as error:
        generate(composed(*paid, "budget=0.39", "confirm=true"))
    assert str(error.value).splitlines()[-1].endswith("budget=0.40 confirm=true")
    assert "budget=0.39" not in str(error.value).splitlines()[-1]
    with pytest.raises(InputError, match=r"budget=0\.4 confirm=true$"):
        generate(composed(*paid, "budget=0.4"))
    assert server.requests == []
    caplog.clear()
    generate(composed(*paid, "budget=0.4", "confirm=true"))
    assert len(server.requests) == 20
    assert "20 of 20 variations are missing" in caplog.text
    assert "20 variations made, 0 were there already, 0 refused, cost 0.40 USD: 2 of each of 10 images" in caplog.text
    # With nothing missing there is nothing to ask; a server without a price is asked about as well.
    generate(composed(*paid))
    assert len(server.requests) == 20
    with pytest.raises(InputError, match=r"10 of 30 variations are missing; .* for about 0\.00 USD; nothing was made"):
        generate(composed(*remote(server), "variations=3", "generator.price_usd=0.0"))


@pytest.mark.parametrize("fault", ["cut short", "drop"])
def test_repeated_calls_stay_within_the_budget(composed: Composed, server: Record, tmp_path: Path, fault: str) -> None:
    """An answer that came damaged is paid for, and one that did not come may be billed."""
    paid = (*remote(server), "variations=1", "generator.price_usd=0.02", "confirm=true")
    server.plan = [None, fault, None, fault]
    with pytest.raises(InputError, match=r"budget is used up: it allows 10 images .* What was made is kept"):
        generate(composed(*paid, "budget=0.2"))
    assert len(server.requests) == 10
    assert len((store(tmp_path) / "manifest.jsonl").read_text().splitlines()) == 8
    generate(composed(*paid, "budget=0.04"))  # what is left costs as much
    assert len(server.requests) == 12


def test_a_price_that_is_not_known_is_asked_for(composed: Composed, server: Record) -> None:
    edit = ("generator=openai_edit", f"generator.base_url={server.url}", "variations=1", "budget=9", "confirm=true")
    with pytest.raises(InputError, match=r"not known: say generator\.price_usd=USD.*nothing was made"):
        generate(composed(*edit))
    assert server.requests == []
    with pytest.raises(InputError, match=r"about 10\.00 USD, which is over budget=9"):
        generate(composed(*edit, "generator.price_usd=1.0"))


def test_the_command_for_the_variations_of_a_pretraining(composed: Composed, server: Record) -> None:
    typed = (*remote(server), "pretraining=variations", "pretraining.per_image=3", "variations=0")
    run = variations_run(prepare(to_object(composed(*typed, script="config"), BoxtwinConfig)))
    with pytest.raises(InputError, match="18 variations of openai_variations are missing") as error:
        make_variations(run)
    words = shlex.split(str(error.value).splitlines()[-1])[2:]
    assert {"variations=3", "variations.validation=false"} <= set(words)
    assert "variations=0" not in words
    made = prepared(composed(*(word for word in words if word not in QUICK), small=False))
    assert (made.store.key, made.wanted) == (run.store.key, 18)


def test_what_was_not_had_is_counted_told_and_done_without(
    composed: Composed,
    server: Record,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    server.plan = [None, "moderation", None, "overloaded", "overloaded"]
    with pytest.raises(InputError) as error:
        generate(composed(*remote(server), "variations=1", "confirm=true"))
    said = str(error.value)
    assert "2 of 10 variations are missing; the same command asks for them again, and training does without" in said
    assert "refused by the host's moderation (400 moderation_blocked)" in said
    assert "failed in 2 tries: 503: Overloaded" in said
    assert "8 variations made, 0 were there already, 2 refused, cost 0.16 USD" in caplog.text
    assert (store(tmp_path) / "contact_sheet.png").is_file()
    # Training takes the eight and asks for nothing, not even a key.
    asked = len(server.requests)
    monkeypatch.delenv("OPENAI_API_KEY")
    run = prepared(composed(*remote(server), "variations=1", script="config"))
    assert make_variations(run).made == 0
    assert run.library is not None
    assert len(run.library.variations(run.sources, 1)) == 8
    assert len(server.requests) == asked
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    generate(composed(*remote(server), "variations=1", "confirm=true"))
    assert len(server.requests) == asked + 2


def test_training_never_calls_a_generator_that_runs_elsewhere(
    composed: Composed, server: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    overrides = (*remote(server), "variations=2", "trainer.steps=120", "seed=3")
    with pytest.raises(InputError, match="20 variations of openai_variations are missing, and training calls") as error:
        make_variations(prepared(composed(*overrides, "rerun=true", script="config")))
    words = shlex.split(str(error.value).splitlines()[-1])
    assert words[:2] == ["python", "generate.py"]
    assert set(overrides) < set(words)
    assert "rerun=true" not in words
    # An experiment or a number set otherwise is in the command too.
    with pytest.raises(InputError, match=r"variations\.per_image=2") as error:
        make_variations(prepared(composed(*remote(server), "variations.per_image=2", script="config")))
    assert server.requests == []


def test_prices_patience_and_places_define_no_run(composed: Composed, server: Record) -> None:
    def values(*more: str) -> dict[str, Any]:
        return defining_values(composed(*remote(server), "variations=2", *more))

    plain = values()
    assert values("generator.price_usd=9.0", "generator.timeout=3.0", "confirm=true", "budget=1") == plain
    assert values("generator.model=other") != plain


def test_generate_takes_the_settings_of_a_run_and_its_own(composed: Composed) -> None:
    config = composed("seed=5", "generator=repeat")
    assert (config.confirm, config.budget, config.regenerate, config.seed) == (False, None, None, 5)
    assert (config.rerun, config.variations.per_image) == (False, 2)
    assert "confirm" not in composed("generator=repeat", script="config")


def test_a_folder_of_another_hand(composed: Composed, tmp_path: Path, make_coco: MakeCoco) -> None:
    built = make_coco(scenes=[1] * 12)
    made = tmp_path / "made"
    for image in built.content["images"]:
        stem = image["file_name"].removesuffix(".png")
        write_png(made / f"{stem}_v1.png", 255 - read_image(built.images / image["file_name"]))
    overrides = (
        "dataset=coco",
        f"dataset.root={built.root}",
        "dataset.image_size=64",
        *("split.train=6", "split.train_pool=6", "split.val=2", "split.test=4"),
        *("generator=folder", f"generator.path={made}", "variations=1"),
    )
    config = composed(*overrides, small=False)
    generate(config)
    lines = [json.loads(line) for line in (store(tmp_path) / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert {line["cost_usd"] for line in lines} == {0.0}
    # The same folder elsewhere is the same store, from train.py too.
    made.rename(tmp_path / "moved")
    moved = [override.replace(str(made), str(tmp_path / "moved")) for override in overrides]
    assert make_variations(prepared(composed(*moved, script="config", small=False))).existing == 8
    # And made again from the files: the same bytes.
    manifest = store(tmp_path) / "manifest.jsonl"
    generate(composed(*moved, f"regenerate={manifest}", small=False))
    (tmp_path / "moved" / "S99_0_v1.png").write_bytes((tmp_path / "moved" / "S00_0_v1.png").read_bytes())
    with pytest.raises(InputError, match=r"S99_0_v1\.png: no image of the data set is called S99_0"):
        generate(composed(*moved, small=False))


@pytest.mark.parametrize("name", ["repeat", "copy_paste", "pixel_ddpm"])
def test_local_generators_give_the_same_bytes_again(
    composed: Composed, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)
    tiny = TINY_DDPM if name == "pixel_ddpm" else ()
    generate(composed(f"generator={name}", "variations=2", *tiny))
    folder = store(tmp_path)
    manifest = folder / "manifest.jsonl"
    before = {path: path.read_bytes() for path in (folder / "images").rglob("*.png")}
    assert len(before) == 20
    lost, damaged, *_ = sorted(before)
    lost.unlink()
    damaged.write_bytes(before[damaged][:100])
    if name == "pixel_ddpm":  # and what was learnt comes out the same, should it be gone
        shutil.rmtree(folder.parent / "models")
    # Neither the generator nor its settings nor the split are said again: the store tells.
    generate(composed(f"regenerate={manifest}", "split.train=5"))
    assert f"{folder}: 18 equal, 2 restored, 0 different" in caplog.text
    assert {path: path.read_bytes() for path in before} == before
    generate(composed(f"regenerate={manifest.parent}"))
    assert "20 equal, 0 restored, 0 different" in caplog.text


def test_a_model_from_a_folder_makes_its_images_again(
    composed: Composed, tmp_path: Path, caplog: pytest.LogCaptureFixture, tiny_pipeline: Callable[[str], Path]
) -> None:
    """The store tells all but where the folder is; what changes pixels, such as a variant, it tells too."""
    caplog.set_level(logging.INFO)
    diffusers: Any = pytest.importorskip("diffusers")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline("stable_diffusion"), safety_checker=None)
    pipeline.save_pretrained(tmp_path / "model", variant="fp16")
    place = ("generator=img2img", f"generator.checkpoint={tmp_path / 'model'}")
    made = ("generator.load.variant=fp16", "generator.steps=3", "generator.tile=32", "generator.overlap=8")
    own = (*place, "generator.name=my_sd")  # as an option of one's own has
    generate(composed(*own, *made, "generator.dtype=float32", "variations=1"))
    again = f"regenerate={store(tmp_path) / 'manifest.jsonl'}"
    generate(composed(*own, again))
    assert "10 equal, 0 restored, 0 different" in caplog.text
    with pytest.raises(
        InputError, match=r"say generator=my_sd generator\.checkpoint=PLACE, where model lies as it was$"
    ):
        generate(composed(own[0], own[2], again))
    with pytest.raises(InputError, match=r"made of data set sar_scenes, and this command has other: give its settings"):
        generate(composed(*own, "dataset.name=other", again))


def test_an_image_that_comes_out_differently_is_told_and_left(composed: Composed, tmp_path: Path) -> None:
    generate(composed("generator=repeat", "variations=1"))
    folder = store(tmp_path)
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    image = folder / lines[0]["image"]
    write_png(image, 255 - read_image(image))
    lines[0]["image_sha256"] = "0" * 64
    for line in lines:
        del line["crc32"]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = image.read_bytes()
    with pytest.raises(InputError, match=rf"1 images of .* come out differently here(?s:.*){lines[0]['image']}: other"):
        generate(composed(f"regenerate={folder / 'manifest.jsonl'}"))
    assert image.read_bytes() == before


def test_what_cannot_be_made_again_is_explained(
    composed: Composed, server: Record, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"nowhere is no store of variations"):
        generate(composed("regenerate=nowhere/manifest.jsonl"))
    generate(composed(*remote(server), "variations=1", "confirm=true"))
    manifest = store(tmp_path) / "manifest.jsonl"
    with pytest.raises(InputError, match="openai_variations runs elsewhere and gives another image every time"):
        generate(composed(f"regenerate={manifest}"))
    generate(composed("generator=repeat", "variations=1"))
    (manifest,) = tmp_path.glob("synthetic/repeat*/manifest.jsonl")
    identity = json.loads((manifest.parent / "store.json").read_text())

    # A renamed folder: the key in a store's name is the hash of its identity.
    manifest = manifest.parent.rename(tmp_path / "synthetic" / "renamed") / "manifest.jsonl"

    def with_identity(**changes: Any) -> None:
        (manifest.parent / "store.json").write_text(json.dumps(identity | changes))

    for evil in (
        {"_target_": "builtins.open", "file": str(tmp_path / "PWNED"), "mode": "w"},
        {"x": {"_target_": "os.abort"}},
    ):
        with_identity(parameters=evil)
        with pytest.raises(InputError, match="refused"):
            generate(composed(f"regenerate={manifest}"))
    assert not (tmp_path / "PWNED").exists()

    with_identity(generator="unheard_of")
    with pytest.raises(
        InputError, match=r"made by generator unheard_of, for which there is no conf/generator/unheard_of"
    ):
        generate(composed(f"regenerate={manifest}"))
    with_identity(parameters={"strength": 0.3})
    with pytest.raises(
        InputError,
        match=r"differs from the one that .* in strength; say generator=repeat generator\.strength",
    ):
        generate(composed(f"regenerate={manifest}"))
    with_identity(format=1)
    with pytest.raises(InputError, match="has format 1, not 2"):
        generate(composed(f"regenerate={manifest}"))
    with_identity()
    with pytest.raises(InputError, match=r"these settings need a value: dataset\.root"):
        generate(composed("dataset=hrsid", f"regenerate={manifest}", small=False))
    # Data that changed since.
    changed = tmp_path / "changed"
    shutil.copytree(scenes, changed)
    path = changed / "images" / json.loads(manifest.read_text().splitlines()[0])["source"]
    write_png(path, 255 - read_image(path))
    with pytest.raises(InputError, match=rf"1 images that the store was made of have changed since.*{path.name}"):
        generate(composed(f"regenerate={manifest}", f"dataset.root={changed}"))
    with pytest.raises(InputError, match=r"images that the store was made of are not in the data set at hand"):
        generate(composed("dataset.build.images=8", f"dataset.root={tmp_path}/other", f"regenerate={manifest}"))


def test_no_sheet_is_drawn_of_nothing(composed: Composed, server: Record) -> None:
    server.always = "moderation"
    with pytest.raises(InputError, match="10 of 10 are left out:\n  10 refused by the host's moderation"):
        generate(composed(*remote(server), "variations=1", "confirm=true"))
    assert contact_sheet(prepared(composed(*remote(server), "variations=1"))) is None


def test_no_variations_are_no_order(composed: Composed) -> None:
    with pytest.raises(InputError, match="variations=0 makes none"):
        generate(composed("variations=0"))


def test_a_sheet_keeps_variations_beside_their_sources(composed: Composed, server: Record, tmp_path: Path) -> None:
    server.plan = ["moderation", None, None, "moderation"]
    with pytest.raises(InputError, match="2 of 20"):
        generate(composed(*remote(server), "variations=2", "confirm=true"))
    sheet = cv2.imread(str(store(tmp_path) / "contact_sheet.png"))
    assert sheet is not None
    assert np.ptp(sheet) > 0


def test_quality_false_makes_no_card_and_defines_no_run(composed: Composed, tmp_path: Path) -> None:
    typed = ("generator=repeat", "variations=1")
    without, with_card = composed(*typed, "quality=false"), (*typed, "quality=true")
    generate(without)
    (store,) = (tmp_path / "synthetic").glob("repeat-*")
    assert not list(store.glob("quality_card*"))
    assert defining_values(without) == defining_values(composed(*with_card))
    generate(composed(*with_card))
    assert (store / "quality_card.json").exists()
    assert (store / "quality_card.png").exists()


def test_a_previews_image_is_read_as_it_was_made(tmp_path: Path) -> None:
    """Channels were chosen when the source was read; the variation has these."""
    reading = Reading(channels=(2, 1, 0), max_pixels=77)
    source = replace(write_sample(tmp_path, "a.png", np.zeros((8, 8, 3), np.uint8), []), reading=reading)
    cell = {"file": str(tmp_path / "a.png"), "boxes": [], "labels": [], "seed": 1, "sha256": ""}
    shown = generate_preview._sample(source, "repeat", cell)
    assert shown is not None
    assert shown.reading == Reading(max_pixels=77)
