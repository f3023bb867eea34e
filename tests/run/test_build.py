import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from small_study import SMALL
from trained_detectors import make_trained

from boxtwin.commands.generate import make_variations
from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register, to_object
from boxtwin.config.identity import defining_values, run_name, setting_hash
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.sample import Judgement, PropagatedBox, Sample
from boxtwin.detector.checkpoint import TrainedDetector, write_detector
from boxtwin.detector.darknet import write_darknet
from boxtwin.detector.nms import merge_tiles
from boxtwin.errors import InputError
from boxtwin.labels.method import Variations
from boxtwin.labels.options import LabelOptions
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import Prepared, load_dataset, make_data, make_detector, prepare, prepared_from
from boxtwin.run.checks import check_settings, warn_of_random_weights
from boxtwin.run.label_detectors import make_judge, write_label_card
from boxtwin.studies.condition_values import part_of
from boxtwin.synthesis.store import Library

ROOT = Path(__file__).parents[2]
Compose = Callable[..., BoxtwinConfig]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set that the tests share, built by the first."""
    return tmp_path_factory.mktemp("scenes") / "sar_scenes"


@pytest.fixture
def composed(tmp_path: Path, scenes: Path) -> Iterator[Compose]:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):

        def with_overrides(*overrides: str) -> BoxtwinConfig:
            if "dataset=hrsid" in overrides:
                small = [value for value in SMALL if ".build." not in value]
            else:
                small = [*SMALL, f"dataset.root={scenes}"]
            chosen = ("generator=repeat", "detector=yolov3_nano", f"data={tmp_path}", *overrides)
            typed = quote_numbers((*small, *chosen), ROOT / "conf" / "variations")
            return to_object(compose("config", typed), BoxtwinConfig)

        yield with_overrides


def store_of(run: Prepared) -> Library:
    assert run.library is not None
    return run.library


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=hrsid"], r"these settings need a value: dataset\.root"),
        (["dataset=hrsid", "dataset.root=nowhere"], r"nowhere/annotations/train_test2017\.json does not exist"),
        (["detector.weights=no.weights"], r"detector\.weights=no\.weights cannot be read"),
        (["trainer.steps=7"], r"trainer\.steps=7 must be a multiple of trainer\.validations=6"),
        (["trainer.devices=-1"], r"trainer\.devices=-1 must be at least 1: the number of GPUs"),
        (["trainer.devices=3"], r"trainer\.batch_size=8 must be a multiple of trainer\.devices=3"),
        (["trainer.precision=float16", "trainer.accelerator=cpu"], r"trainer\.precision=float16 needs a GPU"),
        (["detector.warmup_steps=1200"], r"detector\.warmup_steps=1200 must be below trainer\.steps=1200"),
        (["detector.image_size=70"], r"detector\.image_size=70 must be a multiple of 16"),
        (["dataset.image_size=70"], r"dataset\.image_size=70 must be a multiple of 16, such as 64"),
        (["trainer.validations=0"], r"^trainer\.validations=0 must be at least 1$"),
        (["trainer.epochs=0"], r"^trainer\.epochs=0 must be at least 1$"),
        (["detector.crop=40"], r"detector\.crop=40 must be a multiple of 16"),
        (["detector.tile=8"], r"detector\.tile=8 must be a multiple of 16"),
        (["detector.image_size=40", "detector.crop=48", "detector.tile=48"], "image_size=40 must be a multiple of 16"),
        (["trainer.accelerator=GPU"], r"trainer\.accelerator=GPU is none of auto, cpu, cuda"),
        (["dataset.channels=[0,1]"], "one or three channels"),
        (["detector.anchors=weights"], "takes the anchors of detector.weights, which is not set"),
        (["trainer.steps=0"], r"trainer\.steps=0 tests initial weights as they are; say which"),
        (["detector.anchors=published"], "no published anchors for yolov3_nano"),
        (["split.train_pool=8000", "split.train=8000"], r"split s1 needs 8000 \+ 4 \+ 8 = 8012 images"),
        (["split.train_size=7"], r"split\.train_size=7 must lie between 1 and split\.train=6"),
        (["split.train_size=0"], r"split\.train_size=0 must lie between"),
        (["split.train=9"], r"split\.train=9 must lie between 1 and split\.train_pool=8"),
        (["split.file=none.json"], r"split\.file=none\.json does not exist"),
        (["split.group_by=S"], "needs a group in brackets"),
        (["dataset.augmentation.zoom=0.5"], r"dataset\.augmentation: zoom is the largest factor"),
        (["variations.per_image=-1"], r"variations\.per_image=-1 must not be negative"),
        (["variations.synthetic_fraction=1.5"], r"synthetic_fraction=1\.5 must lie between 0 and 1"),
    ],
)
def test_bad_settings_are_explained(composed: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(composed(*overrides))


def test_without_steps_a_detector_is_tested_with_its_own_anchors(composed: Compose, tmp_path: Path) -> None:
    weights = tmp_path / "detector.safetensors"
    write_detector(make_trained(classes=["ship"], category_ids=[1]), weights)
    as_it_is = (f"detector.weights={weights}", "trainer.steps=0")
    with pytest.raises(
        InputError, match=r"detector\.anchors=kmeans would change what it predicts; set detector\.anchors="
    ):
        prepare(composed(*as_it_is))
    module = make_detector(prepare(composed(*as_it_is, "detector.anchors=weights")))
    assert module.network.anchors == make_trained().module.network.anchors
    # A Darknet file holds none.
    darknet = tmp_path / "nano.weights"
    write_darknet(module.network, darknet, seen=0)
    with pytest.raises(InputError, match=r"a Darknet file holds no anchors.*set detector\.anchors=published"):
        prepare(composed(f"detector.weights={darknet}", "trainer.steps=0"))
    published = ("detector=yolov3_tiny", "detector.image_size=64", "detector.crop=64", "detector.anchors=published")
    check_settings(composed(f"detector.weights={darknet}", "trainer.steps=0", *published))


def test_without_steps_no_part_of_a_detector_is_random(composed: Compose, tmp_path: Path) -> None:
    weights = tmp_path / "detector.safetensors"
    as_it_is = (f"detector.weights={weights}", "trainer.steps=0", "detector.anchors=weights")
    write_detector(make_trained(classes=["ship", "buoy"], category_ids=[1, 2]), weights)
    with pytest.raises(InputError, match=r"trainer\.steps=0 tests .* would stay random"):
        make_detector(prepare(composed(*as_it_is)))
    make_detector(prepare(composed(as_it_is[0])))  # it can be trained
    run = prepare(composed(*as_it_is))
    for classes, fits in ((["buoy", "ship"], True), (["ship", "barge"], False), (["a", "b"], False)):
        dataset = replace(run.dataset, classes=tuple(classes), category_ids=(1, 2))
        if fits:
            make_detector(replace(run, dataset=dataset))
        else:
            with pytest.raises(InputError, match="for some classes only"):
                make_detector(replace(run, dataset=dataset))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a CUDA device")
def test_a_device_that_is_not_there_is_refused_before_work_starts(composed: Compose) -> None:
    with pytest.raises(InputError, match="PyTorch finds no such device"):
        prepare(composed("trainer.accelerator=cuda"))


def test_the_same_configuration_is_the_same_run_and_another_is_another(composed: Compose) -> None:
    plain = prepare(composed())
    assert prepare(composed()).identity == plain.identity
    assert prepare(composed("trainer.threads=1")).identity == plain.identity
    others = [prepare(composed(override)).identity for override in ("seed=1", "variations=1", "split.train=5")]
    assert len({plain.identity, *others}) == 4


def test_other_pixels_are_another_run(composed: Compose, tmp_path: Path) -> None:
    own = f"dataset.root={tmp_path / 'own'}"
    plain = prepare(composed(own))
    path = plain.split.test[0].path
    path.write_bytes(plain.split.test[1].path.read_bytes())
    assert prepare(composed(own)).identity != plain.identity


def test_crops_and_tiles_reach_the_data_and_grey_images_have_one_channel(
    composed: Compose,
) -> None:
    run = prepare(composed("detector.crop=32", "detector.tile=48"))
    data, module = make_data(run, make_plan(run.split, ())), make_detector(run)
    assert next(iter(data.train_dataloader())).images.shape == (8, 1, 32, 32)
    shown = next(iter(data.letterboxed(run.split.test)))
    assert shown.images.shape == (8, 1, 48, 48)
    assert list(shown.image_ids) == [run.split.test[i].image_id for i in (0, 0, 0, 0, 1, 1, 1, 1)]
    assert module.spec.tile == 48
    assert len(merge_tiles(module.detect(shown), module.spec)) == 2
    # A crop that is larger than the image is the image.
    whole = prepare(composed("detector.crop=416"))
    assert next(iter(make_data(whole, make_plan(whole.split, ())).train_dataloader())).images.shape[-1] == 64


def test_objects_that_shrink_to_nothing_are_pointed_out(composed: Compose, caplog: pytest.LogCaptureFixture) -> None:
    prepare(composed())
    assert "half of the training objects" not in caplog.text
    prepare(composed("detector.image_size=32"))
    assert "a larger dataset.image_size, up to 64" in caplog.text


def test_objects_that_crops_cut_off_are_pointed_out(composed: Compose, caplog: pytest.LogCaptureFixture) -> None:
    prepare(composed("detector.crop=64"))
    assert "one training object in ten" not in caplog.text
    prepare(composed("detector.crop=16"))
    assert "crops of 16 pixels will cut many of them off: try dataset.image_size=" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "published"),
    [
        ([], "yolov3-tiny.weights"),
        (["detector=yolov3_spp"], "yolov3-spp.weights"),
        (["detector=yolov3_nano"], None),  # none are published
        (["detector.weights=FILE"], None),
        (["dataset=sar_chips"], None),  # simulated: for trials
    ],
)
def test_training_from_random_weights_names_published_ones(
    composed: Compose, overrides: list[str], published: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_random_weights(composed("dataset=hrsid", "dataset.root=FOLDER", "detector=yolov3_tiny_3l", *overrides))
    assert [f"detector.weights=FOLDER/{published}" in text for text in caplog.messages] == [True] * bool(published)


def test_images_are_decoded_once_for_all_runs(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    read = Sample.read

    def counting(sample: Sample) -> np.ndarray:
        decoded.append(sample.name)
        return read(sample)

    monkeypatch.setattr(Sample, "read", counting)
    runs = [prepare(composed(*more)) for more in ([], ["seed=1"], ["split.train=5"])]
    for run in runs:
        make_detector(run)
        make_data(run, make_plan(run.split, ()))
    # Six training, four validation and eight test images.
    assert len(decoded) == len(set(decoded)) == 18
    decoded.clear()
    anew = prepare(composed("trainer.cache=false"))
    assert anew.identity == runs[0].identity
    assert anew.levels == runs[0].levels
    assert len(decoded) == 7  # without a cache, the training images for their levels, the first of them twice


def test_without_variations_there_is_no_store(composed: Compose) -> None:
    assert prepare(composed("variations=0")).library is None
    assert prepare(composed("variations=2")).per_image == 2


def test_the_embedded_data_set_is_built_once(composed: Compose) -> None:
    first = load_dataset(composed())
    assert len(first.samples) == 24
    before = {sample.path: sample.path.stat().st_mtime_ns for sample in first.samples}
    again = load_dataset(composed())
    assert {sample.path: sample.path.stat().st_mtime_ns for sample in again.samples} == before
    assert again.digest == first.digest


def test_runs_that_share_a_seed_share_initial_weights_and_anchors(composed: Compose) -> None:
    with_none, with_some = prepare(composed("variations=0")), prepare(composed("variations=2"))
    a, b = make_detector(with_none), make_detector(with_some)
    assert all((x == y).all() for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert a.hparams == b.hparams
    other = make_detector(prepare(composed("seed=1")))
    assert any((x != y).any() for x, y in zip(a.state_dict().values(), other.state_dict().values(), strict=True))


def test_every_run_takes_the_same_steps(composed: Compose) -> None:
    run = prepare(
        composed(
            "variations=0",
            "trainer.steps=12",
            "detector.warmup_steps=1",
            "trainer.validations=3",
            "trainer.batch_size=4",
        )
    )
    data = make_data(run, make_plan(run.split, ()))
    assert len(data.train_dataloader()) == 4


def test_part_of_a_split_is_another_run_with_another_store(composed: Compose) -> None:
    whole = prepare(composed("variations=1", "generator=copy_paste"))
    same = prepare(composed("variations=1", "generator=copy_paste", "split.train_size=6"))
    part = prepare(composed("variations=1", "generator=copy_paste", "split.train_size=3"))
    assert run_name(whole.config) == run_name(same.config) == "s1-x1-copy_paste-yolov3_nano-seed0"
    assert whole.identity == same.identity
    assert run_name(part.config) == "s1n3-x1-copy_paste-yolov3_nano-seed0"
    assert part.identity != whole.identity
    assert "train_size" not in defining_values(whole.config)["split"]
    assert part.split.names["train"] == whole.split.names["train"][:3]
    assert (part.split.names["val"], part.split.names["test"]) == (
        whole.split.names["val"],
        whole.split.names["test"],
    )
    # copy_paste takes objects from the training images: it must not have seen those that were left out.
    assert store_of(part).key != store_of(whole).key
    assert [name for name, _ in store_of(part).identity.training] == part.split.names["train"]
    assert setting_hash(part.config) == setting_hash(whole.config)


def test_part_of_a_predefined_split(composed: Compose, tmp_path: Path) -> None:
    prepare(composed()).split.save(tmp_path / "frozen.json")
    drawn = prepare(composed("split.train_size=3"))
    read = prepare(composed("split.train_size=3", f"split.file={tmp_path / 'frozen.json'}"))
    assert read.split.digest == drawn.split.digest
    assert read.identity == drawn.identity
    with pytest.raises(InputError, match=r"s1 has 6 training images.*set split\.train=6 \(it is 8 now\)"):
        prepare(composed("split.train=8", "split.train_size=3", f"split.file={tmp_path / 'frozen.json'}"))


def test_the_part_of_the_real_chips_is_the_smaller_split(composed: Compose, hrsid200: Path) -> None:
    split_file = f"split.file={hrsid200}/splits/scene_disjoint.json"
    chips = ("dataset=hrsid", f"dataset.root={hrsid200}", "split.train=80", "split.train_pool=80", split_file)
    parts = {size: prepare(composed(*chips, f"split.train_size={size}")).split for size in (20, 40, 60)}
    s2 = prepare(composed(*chips, "split=s2")).split
    assert set(parts[40].names["train"]) == set(s2.names["train"])
    assert set(parts[20].names["train"]) < set(parts[40].names["train"]) < set(parts[60].names["train"])
    assert parts[20].names["test"] == s2.names["test"]
    assert len({sample.group for sample in parts[20].train}) > 10


def test_runs_from_weights_are_found_under_the_name_that_older_versions_gave_them(
    composed: Compose, tmp_path: Path
) -> None:
    trained = make_trained(architecture="yolov3_nano", channels=1)
    runs = []
    for name in ("a", "b"):
        path = tmp_path / name / "detector.safetensors"
        write_detector(TrainedDetector(trained.module, 0.5, {"study": name}), path)
        runs.append(prepare(composed("variations=0", f"detector.weights={path}")))
    # The file's hash was in the identity, so that each copy of a detector made another run.
    assert runs[0].identity == runs[1].identity
    assert len({run.earlier_identities for run in runs}) == 2
    values = defining_values(runs[0].config)
    of_file = hashlib.sha256((tmp_path / "a" / "detector.safetensors").read_bytes()).hexdigest()
    data = {"dataset": runs[0].dataset.digest, "split": runs[0].split.digest, "store": None, "weights": of_file}
    old = hashlib.sha256(json.dumps({"values": values, **data}, sort_keys=True).encode()).hexdigest()
    assert runs[0].earlier_identities == (old,)
    assert prepare(composed("variations=0")).earlier_identities == ()


def test_a_condition_is_all_that_defines_a_run_but_its_seed(composed: Compose) -> None:
    zero, one, other = (
        prepare(composed(*v))
        for v in (["variations=2", "seed=0"], ["variations=2", "seed=1"], ["detector.learning_rate=0.5"])
    )
    assert zero.condition == one.condition != other.condition
    assert zero.identity != one.identity
    assert set(zero.condition["data"]) == {"train", "val", "test"}
    assert zero.condition["store"] == store_of(zero).key


def test_runs_that_older_versions_trained_on_crowds_as_background_are_others(composed: Compose) -> None:
    plain = prepare(composed())
    first, *others = plain.dataset.samples
    marked = replace(first, crowd=np.ones(len(first.boxes), dtype=bool))
    with_crowds = prepared_from(plain.config, replace(plain.dataset, samples=(marked, *others)), plain.split)
    assert len(marked.boxes)
    assert with_crowds.condition == plain.condition | {"crowds": "ignored"}
    assert with_crowds.identity not in (plain.identity, *plain.earlier_identities)


def test_networks_with_other_channels_are_another_condition(composed: Compose) -> None:
    """An image in colour on no side of the split gives the network three channels."""
    plain = prepare(composed())
    used = {sample.name for side in ("train", "val", "test") for sample in plain.split.side(side)}
    samples = tuple(replace(each, colour=each.name not in used) for each in plain.dataset.samples)
    in_colour = prepared_from(plain.config, replace(plain.dataset, samples=samples), plain.split)
    assert in_colour.condition == plain.condition | {"channels": 3}
    assert part_of("channels") == "split"  # a size of the training set with colour is compared with one without
    assert in_colour.identity != plain.identity


def test_splits_that_share_a_store_have_label_cards_of_their_own(composed: Compose) -> None:
    first, second = (prepare(composed("variations=1", *part)) for part in ((), ("split.train_size=3",)))
    assert store_of(first).folder == store_of(second).folder
    assert len(first.sources) != len(second.sources)
    for run in (first, second):
        make_variations(run)
    cards = [write_label_card(run)[0] for run in (first, second, first)]
    for run, card in zip((first, second, first), cards, strict=True):
        content = json.loads(card.read_text())
        assert content["images"] == len(run.sources)
        assert content["kept"] == content["objects"] == sum(len(sample.object_boxes) for sample in run.sources)
    assert cards[0] == cards[2]
    assert json.loads((store_of(first).folder / "label_card.json").read_text())["images"] == len(first.sources)


def test_two_files_of_one_class_are_two_generators(composed: Compose) -> None:
    usual, other = (prepare(composed("variations=2", *more)) for more in ((), ("generator.name=mine",)))
    assert type(store_of(usual).generator) is type(store_of(other).generator)
    assert (store_of(usual).folder.name[:7], store_of(other).folder.name[:5]) == ("repeat-", "mine-")
    assert store_of(usual).key != store_of(other).key
    assert store_of(other).identity.generator == "mine"
    assert run_name(other.config) == "s1-x2-mine-yolov3_nano-seed0"
    with pytest.raises(InputError, match=r"generator\.name='\.\./x' cannot be the name of a folder"):
        prepare(composed("variations=2", "generator.name=../x"))


class Everywhere:
    """A way to label: one box in every image, of a side that its file sets."""

    name = "everywhere"
    by_hand = asks_detectors = False

    def __init__(self, options: LabelOptions, variations: Variations) -> None:  # noqa: ARG002
        self.side = options.more["side"]

    def identity(self) -> dict[str, Any]:
        return {"side": self.side}

    def judge(self, members: Any) -> "Everywhere":  # noqa: ARG002
        return self

    def __call__(self, *_: Any) -> Judgement:
        return Judgement((PropagatedBox((0.0, 0.0, self.side, self.side), 0, "added", {}),))


def test_another_way_to_label_takes_a_class_and_its_settings(composed: Compose) -> None:
    own = ("labels.name=everywhere", f"labels._target_={__name__}.Everywhere")
    runs = [prepare(composed("variations=1", *own, f"+labels.more.side={side}")) for side in (8.0, 9.0)]
    assert len({run.identity for run in runs}) == len({store_of(run).key for run in runs}) == 2
    assert store_of(runs[0]).identity.labels == {"name": "everywhere", "side": 8.0}
    judge: Any = make_judge(runs[0])
    assert judge().boxes[0].box == (0, 0, 8, 8)


@pytest.mark.parametrize("generator", ["repeat", "copy_paste"])
def test_images_read_in_another_way_have_a_store_of_their_own(composed: Compose, generator: str) -> None:
    """Two runs at once would replace each other's variations. What is learnt from is in the key without that."""
    chosen = [f"generator={generator}", "variations=1"]
    usual, named = (store_of(prepare(composed(*chosen, *more))) for more in ([], ["dataset.orientation=apply"]))
    other = store_of(prepare(composed(*chosen, "dataset.on_bad_box=clip")))
    assert usual.key == named.key
    assert (other.key == usual.key) == (generator == "copy_paste")
    labels = other.identity.labels
    assert isinstance(labels, dict)
    assert labels.get("read") == (None if generator == "copy_paste" else {"on_bad_box": "clip"})
