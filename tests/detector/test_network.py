from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from trained_detectors import predictions, randomise_norm

from boxtwin.detector.darknet import darknet_cfg, read_darknet, tensors_of, write_darknet
from boxtwin.detector.decode import boxes_and_scores
from boxtwin.detector.network import (
    OBJECT_PRIOR,
    PUBLISHED_ANCHORS,
    STRIDES,
    Convolution,
    SamePool,
    YOLOv3,
    folded,
)
from boxtwin.detector.options import Architecture
from boxtwin.errors import InputError

NANO_ANCHORS = [[[40, 40], [60, 30]], [[10, 10], [20, 8]]]
WEIGHTS = Path(__file__).parents[2] / "../shared/weights/yolov3-tiny.weights"
real_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"the published weights are not at {WEIGHTS}")


def tiny(classes: int) -> YOLOv3:
    return YOLOv3("yolov3_tiny", classes, PUBLISHED_ANCHORS["yolov3_tiny"])


def test_maps_have_the_published_shapes() -> None:
    images = torch.zeros(1, 3, 64, 96)
    for network, shapes in (
        (YOLOv3("yolov3", 80, PUBLISHED_ANCHORS["yolov3"]), [(2, 3), (4, 6), (8, 12)]),
        (YOLOv3("yolov3_spp", 80, PUBLISHED_ANCHORS["yolov3_spp"]), [(2, 3), (4, 6), (8, 12)]),
        (YOLOv3("yolov3_tiny_3l", 80, PUBLISHED_ANCHORS["yolov3"]), [(2, 3), (4, 6), (8, 12)]),
        (tiny(80), [(2, 3), (4, 6)]),
    ):
        with torch.no_grad():
            raw = network.eval()(images)
        assert [tuple(level.shape) for level in raw] == [(1, 3, *shape, 85) for shape in shapes]
    raw = YOLOv3("yolov3_nano", 2, NANO_ANCHORS).eval()(images)
    assert [tuple(level.shape) for level in raw] == [(1, 2, 4, 6, 7), (1, 2, 8, 12, 7)]


def test_first_predictions_are_the_priors() -> None:
    raw = tiny(4).eval()(torch.rand(2, 3, 64, 64))
    for level in raw:
        # Logits: small first weights leave them near the prior's, whatever the image.
        level = level.detach()
        assert (level[..., 4] - torch.tensor(OBJECT_PRIOR).logit()).abs().max() < 1.5
        assert (level[..., 5:] - torch.tensor(0.25).logit()).abs().max() < 1.5
        assert level[..., 4].mean().sigmoid().item() == pytest.approx(OBJECT_PRIOR, rel=0.5)


@pytest.mark.parametrize("network", [tiny(2), YOLOv3("yolov3_nano", 2, NANO_ANCHORS, channels=1)], ids=["tiny", "nano"])
def test_folding_leaves_the_outputs_as_they_are(network: YOLOv3) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, network.channels, 64, 96)
    with torch.no_grad():
        for layer in network.layers():
            if isinstance(layer, Convolution):  # statistics and weights as training leaves them, not 0 and 1
                randomise_norm(layer)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        network.eval()
        expected, found = network(images), folded(network)(images)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded(network).modules())
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_same_pool_is_darknets() -> None:
    x = torch.randn(2, 3, 5, 7)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(2, 3))
    assert np.array_equal(SamePool()(x).numpy(), windows.max(axis=(-1, -2)))


@pytest.mark.parametrize(
    ("anchors", "message"),
    [([[[1, 2]]], "2 groups"), ([[[1, 2]], []], "none empty"), ([[[1, 0]], [[1, 1]]], "above 0")],
)
def test_anchors_are_checked(anchors: list[list[list[float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        YOLOv3("yolov3_tiny", 1, anchors)


def test_image_size_is_checked() -> None:
    with pytest.raises(ValueError, match="multiple of 32, got 416 x 400"):
        tiny(1)(torch.zeros(1, 3, 400, 416))


@real_weights
def test_raw_outputs_equal_opencvs_darknet_reader(tmp_path: Path) -> None:
    network = tiny(80)
    report = read_darknet(network, WEIGHTS)
    assert report.loaded == tuple(range(13))
    assert report.skipped == ()
    oracle = cv2.dnn.readNetFromDarknet(str(WEIGHTS.with_suffix(".cfg")), str(WEIGHTS))
    images = np.random.default_rng(0).random((1, 3, 416, 416), dtype=np.float32)
    oracle.setInput(images)
    expected = oracle.forward(["conv_15", "conv_22"])
    with torch.no_grad():
        raw = network.eval()(torch.from_numpy(images))
    for maps, level in zip(expected, raw, strict=True):
        ours = level[0].permute(0, 3, 1, 2).reshape(maps.shape).numpy()
        assert np.abs(maps).max() > 1
        np.testing.assert_allclose(ours, maps, atol=1e-3, rtol=0)
    write_darknet(network, tmp_path / "again.weights", seen=report.seen)
    assert (tmp_path / "again.weights").read_bytes() == WEIGHTS.read_bytes()


# Bytes of the published 80-class files, where Darknet publishes one.
FILES = [
    ("yolov3", ("conv_81", "conv_93", "conv_105"), 248_007_048),
    ("yolov3_spp", ("conv_88", "conv_100", "conv_112"), 252_209_544),
    ("yolov3_tiny", ("conv_15", "conv_22"), 35_434_956),
    ("yolov3_tiny_3l", ("conv_15", "conv_22", "conv_29"), None),
    ("yolov3_nano", ("conv_10", "conv_17"), None),
]


@pytest.mark.parametrize(("architecture", "layers", "size"), FILES, ids=[name for name, _, _ in FILES])
def test_opencv_reads_our_files_and_computes_the_same(
    architecture: Architecture, layers: tuple[str, ...], size: int | None, tmp_path: Path
) -> None:
    anchors = PUBLISHED_ANCHORS["yolov3" if len(STRIDES[architecture]) == 3 else "yolov3_tiny"]
    network = YOLOv3(architecture, 80, anchors).eval()
    for layer in network.layers():
        if isinstance(layer, Convolution):
            randomise_norm(layer)
    path = tmp_path / "network.weights"
    write_darknet(network, path, seen=7)
    assert size is None or path.stat().st_size == size
    (tmp_path / "network.cfg").write_text(darknet_cfg(network, 64, 1.0))
    oracle = cv2.dnn.readNetFromDarknet(str(tmp_path / "network.cfg"), str(path))
    images = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    oracle.setInput(images)
    expected = oracle.forward(list(layers))
    with torch.no_grad():
        raw = network(torch.from_numpy(images))
    for maps, level in zip(expected, raw, strict=True):
        ours = level[0].permute(0, 3, 1, 2).reshape(maps.shape).numpy()
        assert np.abs(maps - maps.mean()).max() > 0.05
        np.testing.assert_allclose(ours, maps, atol=1e-3, rtol=0)
    again = YOLOv3(architecture, 80, network.anchors)
    assert read_darknet(again, path).skipped == ()
    write_darknet(again, tmp_path / "again.weights", seen=7)
    assert (tmp_path / "again.weights").read_bytes() == path.read_bytes()
    path.unlink()  # a quarter of a gigabyte that pytest would keep
    (tmp_path / "again.weights").unlink()


@pytest.mark.parametrize("architecture", ["yolov3_nano", "yolov3_tiny"])
def test_a_grey_network_takes_a_colour_files_weights_and_computes_the_same(
    architecture: Architecture, tmp_path: Path
) -> None:
    anchors = PUBLISHED_ANCHORS["yolov3_tiny"]
    colour, grey = YOLOv3(architecture, 3, anchors), YOLOv3(architecture, 3, anchors, channels=1)
    write_darknet(colour, tmp_path / "colour.weights", seen=0)
    assert read_darknet(grey, tmp_path / "colour.weights").skipped == ()
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, three in zip(grey.eval()(images), colour.eval()(images.expand(1, 3, 64, 64)), strict=True):
            torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-4)
    # Its own file has one channel, and comes back whole; a colour network cannot take it.
    write_darknet(grey, tmp_path / "grey.weights", seen=0)
    again = YOLOv3(architecture, 3, anchors, channels=1)
    assert read_darknet(again, tmp_path / "grey.weights").skipped == ()
    assert all(torch.equal(a, b) for a, b in zip(grey.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="do not fit"):
        read_darknet(colour, tmp_path / "grey.weights")
    # Other classes and colour at once.
    single = YOLOv3(architecture, 1, anchors, channels=1)
    assert len(read_darknet(single, tmp_path / "colour.weights").skipped) == 2
    assert torch.equal(next(single.parameters()), next(grey.parameters()))


@real_weights
def test_the_tiny_networks_weights_fit_the_one_with_three_heads() -> None:
    network, source = YOLOv3("yolov3_tiny_3l", 1, PUBLISHED_ANCHORS["yolov3"]), tiny(80)
    read_darknet(source, WEIGHTS)
    report = read_darknet(network, WEIGHTS)
    assert report.loaded == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11)
    assert report.skipped == (9, 12, 13, 14, 15)
    for ours, theirs in zip(list(network.layers())[:12], source.layers(), strict=False):
        if isinstance(ours, Convolution):
            assert isinstance(theirs, Convolution)
            assert torch.equal(ours.conv.weight, theirs.conv.weight)


@pytest.mark.parametrize(("channels", "scale_xy"), [(1, 2.0), (3, 1.0)])
def test_opencv_decodes_the_same_boxes_from_our_configuration(channels: int, scale_xy: float, tmp_path: Path) -> None:
    """Anchors of two sizes a head, masks, classes and channels as the text has them."""
    network = YOLOv3("yolov3_nano", 2, NANO_ANCHORS, channels).eval()
    for predict in predictions(network):
        assert predict.bias is not None
        torch.nn.init.normal_(predict.weight, std=0.05, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(predict.bias)
    write_darknet(network, tmp_path / "w.weights", seen=0)
    (tmp_path / "w.cfg").write_text(darknet_cfg(network, 64, scale_xy))
    oracle = cv2.dnn.readNetFromDarknet(str(tmp_path / "w.cfg"), str(tmp_path / "w.weights"))
    images = np.random.default_rng(0).random((1, channels, 64, 64), dtype=np.float32)
    oracle.setInput(images)
    # A row for each place: cxcywh in shares of the image, objectness, a score for each class.
    rows = np.concatenate(oracle.forward(oracle.getUnconnectedOutLayersNames()))
    with torch.no_grad():
        boxes, scores = boxes_and_scores(
            network(torch.from_numpy(images)), network.anchors, network.strides, scale_xy=scale_xy
        )
    # OpenCV leaves scores of 0.2 and less out.
    kept = np.where(scores[0].numpy() > 0.2, scores[0].numpy(), 0)
    assert 0 < np.count_nonzero(kept) < kept.size
    # OpenCV goes row by row, then anchor by anchor; sorted, the order is one.
    centres, sizes = rows[:, :2] * 64, rows[:, 2:4] * 64
    expected = np.concatenate([centres - sizes / 2, centres + sizes / 2, rows[:, 5:]], axis=1)
    ours = np.concatenate([boxes[0].numpy(), kept], axis=1)
    order = [np.lexsort(np.round(table[:, :4], 1).T) for table in (expected, ours)]
    np.testing.assert_allclose(ours[order[1]], expected[order[0]], atol=1e-3, rtol=1e-5)


def test_heads_of_other_classes_are_left_as_they_are(tmp_path: Path) -> None:
    source = YOLOv3("yolov3_nano", 80, NANO_ANCHORS)
    write_darknet(source, tmp_path / "w.weights", seen=3)
    target = YOLOv3("yolov3_nano", 1, NANO_ANCHORS)
    heads = [predict.weight.clone() for predict in predictions(target)]
    report = read_darknet(target, tmp_path / "w.weights")
    assert report.skipped == tuple(i for i, layer in enumerate(target.layers()) if not isinstance(layer, Convolution))
    assert len(report.loaded) == 10
    assert report.seen == 3
    assert all(torch.equal(now.weight, old) for now, old in zip(predictions(target), heads, strict=True))
    for ours, theirs in zip(target.layers(), source.layers(), strict=True):
        if isinstance(ours, Convolution):
            assert isinstance(theirs, Convolution)
            assert torch.equal(ours.conv.weight, theirs.conv.weight)


def test_a_colour_file_of_other_classes_is_not_taken_for_a_grey_one_of_fewer_heads(tmp_path: Path) -> None:
    """That of 60 classes has the size of a grey one with 966 outputs and one head less."""
    anchors = PUBLISHED_ANCHORS["yolov3_tiny"]
    colour, grey = YOLOv3("yolov3_nano", 60, anchors), YOLOv3("yolov3_nano", 1, anchors, channels=1)
    write_darknet(colour, tmp_path / "colour.weights", seen=0)
    report = read_darknet(grey, tmp_path / "colour.weights")
    layers = list(zip(grey.layers(), colour.layers(), strict=True))
    assert len(report.skipped) == 2
    for index, (ours, theirs) in enumerate(layers):
        if index and index not in report.skipped:
            for one, other in zip(tensors_of(ours), tensors_of(theirs), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_file_cut_after_a_layer_loads_up_to_there(tmp_path: Path) -> None:
    source, target = YOLOv3("yolov3_nano", 1, NANO_ANCHORS), YOLOv3("yolov3_nano", 1, NANO_ANCHORS)
    write_darknet(source, tmp_path / "w.weights", seen=0)
    sizes = [sum(t.numel() for t in layer.state_dict().values() if t.is_floating_point()) for layer in source.layers()]
    whole = (tmp_path / "w.weights").read_bytes()
    (tmp_path / "cut.weights").write_bytes(whole[: 20 + 4 * sum(sizes[:6])])
    report = read_darknet(target, tmp_path / "cut.weights")
    assert report.loaded == tuple(range(6))
    assert report.skipped == tuple(range(6, 12))


def test_old_headers_count_images_in_four_bytes(tmp_path: Path) -> None:
    source, target = YOLOv3("yolov3_nano", 1, NANO_ANCHORS), YOLOv3("yolov3_nano", 1, NANO_ANCHORS)
    write_darknet(source, tmp_path / "w.weights", seen=0)
    values = (tmp_path / "w.weights").read_bytes()[20:]
    (tmp_path / "old.weights").write_bytes(np.array([0, 1, 0, 42], "<i4").tobytes() + values)
    assert read_darknet(target, tmp_path / "old.weights").seen == 42
    assert torch.equal(next(source.parameters()), next(target.parameters()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[:-4], r"expected 3,1\d\d,\d{3} bytes .* got 3,1"),
        (lambda whole: whole + b"1234", "do not fit yolov3_nano"),
        (lambda whole: whole[:10], "its header alone needs 16"),
        (lambda whole: whole[:20] + np.float32("nan").tobytes() + whole[24:], "1 non-finite values"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, change: object, message: str) -> None:
    network = YOLOv3("yolov3_nano", 1, NANO_ANCHORS)
    path = tmp_path / "w.weights"
    write_darknet(network, path, seen=0)
    assert callable(change)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        read_darknet(network, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.weights cannot be read"):
        read_darknet(YOLOv3("yolov3_nano", 1, NANO_ANCHORS), tmp_path / "none.weights")


def test_published_anchors_of_the_tiny_network_are_those_its_weights_were_trained_with() -> None:
    """Its list of six, coarse head 3, 4, 5 and fine head 1, 2, 3, so that one is in both."""
    six = [(10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319)]
    assert PUBLISHED_ANCHORS["yolov3_tiny"] == (tuple(six[3:6]), tuple(six[1:4]))
