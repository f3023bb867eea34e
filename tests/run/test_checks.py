"""What the settings of a run name is looked at before any run of a sweep begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import MakeCoco
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register
from boxtwin.config.places import check_places
from boxtwin.detector.checkpoint import check_initial_weights
from boxtwin.detector.darknet import read_darknet, tensors_of, write_darknet
from boxtwin.detector.network import ANCHORS_PER_HEAD, STRIDES, YOLOv3
from boxtwin.detector.options import Architecture
from boxtwin.errors import InputError
from boxtwin.run.checks import check_composed

CONF = Path(__file__).parents[2] / "conf"
SMALL = ("split=s1", "split.train=4", "split.train_pool=4", "split.val=2", "split.test=2", "detector=yolov3_nano")
Check = Callable[..., None]


@pytest.fixture
def check(make_coco: MakeCoco) -> Iterator[Check]:
    """The check before a run on a small data set, with further words on the command line."""
    root = make_coco(images=8).root
    register()

    def check_words(*words: str) -> None:
        own = ("dataset=coco", "dataset.name=tiny", f"dataset.root={root}", *SMALL, *words)
        config: DictConfig = compose("config", quote_numbers(own, CONF / "variations"))
        OmegaConf.set_struct(config, False)
        check_places(config)
        check_composed(config)

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield check_words


def test_a_split_file_has_the_split_and_its_images_are_in_the_data_set(check: Check, tmp_path: Path) -> None:
    names = sorted(path.name for path in (tmp_path / "coco" / "images").iterdir())
    sides = {"train": names[:4], "val": names[4:6], "test": names[6:]}
    file = tmp_path / "split.json"

    def write(**splits: object) -> str:
        file.write_text(json.dumps(splits))
        return f"split.file={file}"

    check(write(s1=sides))
    check(write(s1=sides), "split.train_size=2")
    for splits, words in {
        "no split called s1; it has s2": {"s2": sides},
        "needs three lists": {"s1": {"train": names}},
        "1 image.* not in data set tiny: other.png": {"s1": sides | {"test": ["other.png"]}},
        "listed twice": {"s1": sides | {"test": names[:1]}},
    }.items():
        with pytest.raises(InputError, match=splits):
            check(write(**words))
    with pytest.raises(InputError, match=r"also set split\.train=3"):
        check(write(s1=sides | {"train": names[:3]}), "split.train_size=2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("labels=manual",), r"labels=manual takes a file"),
        (("labels=manual", "labels.file=nowhere.json"), r"labels\.file=nowhere\.json: there is no such file"),
        (("labels=pseudo", "labels.agree=4"), r"labels\.agree=4 must lie between 1 and labels\.detectors=3"),
        (("generator.mirror=true", "+generator.crop=32", "+generator.steps=5"), r"no settings crop, mirror, steps"),
    ],
)
def test_labels_and_generators_are_looked_at_where_there_are_variations(
    check: Check, words: tuple[str, ...], message: str
) -> None:
    words = tuple(word if word[0] != "g" else f"+{word}" for word in words)
    with pytest.raises(InputError, match=message):
        check("variations=2", "generator=repeat", *words)
    check("variations=0", "generator=repeat", *words)


@pytest.mark.parametrize("setting", ["dataset.unlabelled", "dataset.empty"])
def test_folders_of_images_have_images(check: Check, tmp_path: Path, setting: str) -> None:
    with pytest.raises(InputError, match=rf"{setting}=nowhere: there is no such folder"):
        check(f"{setting}=nowhere")
    with pytest.raises(InputError, match="there is no such folder"):
        check(f"{setting}={tmp_path / 'coco' / 'annotations.json'}")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(InputError, match="holds no images"):
        check(f"{setting}={tmp_path / 'texts'}")
    (tmp_path / "texts" / "deeper").mkdir()
    (tmp_path / "texts" / "deeper" / "a.png").touch()
    check(f"{setting}={tmp_path / 'texts'}")


def test_initial_weights_fit_the_architecture(check: Check, tmp_path: Path) -> None:
    wrong = tmp_path / "coco" / "annotations.json"
    with pytest.raises(InputError, match="do not fit yolov3_nano"):
        check(f"detector.weights={wrong}")
    (tmp_path / "short.weights").write_bytes(b"123")
    with pytest.raises(InputError, match="is no Darknet weights file"):
        check(f"detector.weights={tmp_path / 'short.weights'}")
    (tmp_path / "short.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="or is damaged"):
        check(f"detector.weights={tmp_path / 'short.safetensors'}")


@pytest.mark.parametrize("architecture", [Architecture(name) for name in STRIDES if name != "yolov3_spp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_other_classes_and_colours_fit_and_those_of_other_networks_do_not(
    tmp_path: Path, architecture: Architecture, channels: int
) -> None:
    anchors = [[(8.0, 8.0)] * ANCHORS_PER_HEAD for _ in STRIDES[architecture]]
    with torch.device("meta"):
        network = YOLOv3(architecture, 7, anchors, channels=channels)
    for tensor in network.to_empty(device="cpu").state_dict().values():
        tensor.zero_()
    write_darknet(network, tmp_path / "own.weights", seen=0)
    check_initial_weights(tmp_path / "own.weights", architecture)
    content = (tmp_path / "own.weights").read_bytes()
    # Cut before the last prediction layer, and so behind the first one.
    last = 4 * sum(tensor.numel() for tensor in tensors_of([*network.layers()][-1]))
    (tmp_path / "cut.weights").write_bytes(content[:-last])
    check_initial_weights(tmp_path / "cut.weights", architecture)
    assert read_darknet(network, tmp_path / "cut.weights").skipped
    (tmp_path / "longer.weights").write_bytes(content + b"1234")
    with pytest.raises(InputError, match=f"do not fit {architecture}"):
        check_initial_weights(tmp_path / "longer.weights", architecture)


def test_the_settings_of_simulated_images_are_none_of_ones_own() -> None:
    """An experiment for simulated images sets some of them, and the command takes images of its own."""
    own = {"name": "tiny", "root": "tiny", "images": "images", "annotations": "annotations.json"}
    config = OmegaConf.create({"dataset": {**own, "build": {"images": "???", "seed": 1}}, "split": {"file": None}})
    with pytest.raises(InputError, match=r"dataset\.build\.images has no value: .* leave its settings out"):
        check_places(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pretraining=variations", "pretraining.per_image=0"), r"pretraining\.per_image=0: .* at least 1"),
        (("detector.warmup_steps=-1",), r"detector\.warmup_steps=-1 must not be negative"),
        (("dataset.augmentation.translate=2",), "translate must lie between 0 and 1, got 2"),
        (("dataset.augmentation.hue=5",), "hue must lie between 0 and 1, got 5"),
        (("dataset.augmentation.gain=1000",), "gain must lie between 0 and 3, got 1000"),
    ],
)
def test_numbers_that_cannot_be_meant(check: Check, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(*words)
