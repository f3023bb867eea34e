"""The Darknet configuration (``.cfg``) that belongs to a weights file of ours, for Darknet and OpenCV.

Layer by layer as the published ``yolov3.cfg``, ``yolov3-spp.cfg``, ``yolov3-tiny.cfg`` and ``yolov3-tiny_3l.cfg``;
yolov3_nano has none but this one. Anchors are listed finest head first, as Darknet's files have them.
"""

from __future__ import annotations

from boxtwin.detector.network import YOLOv3

_SHORTCUT = "[shortcut]\nfrom=-3\nactivation=linear\n\n"


def darknet_cfg(network: YOLOv3, side: int, scale_xy: float) -> str:
    """The text of a configuration for ``side`` x ``side`` images; ``scale_xy`` as in `boxtwin.detector.decode`.

    Its key ``scale_x_y`` is known to OpenCV and to A. Bochkovskiy's Darknet, not to the original, which takes 1.
    """
    groups = network.anchors
    text = f"[net]\nwidth={side}\nheight={side}\nchannels={network.channels}\n\n"
    heads = [_head(groups, index, network.num_classes, scale_xy) for index in range(len(groups))]
    match network.architecture:
        case "yolov3_nano":
            text += _conv(16, 3, 2) + _conv(32, 3, 2) + _conv(48, 3) + _pool(2, 2) + _conv(96, 3)
            text += _pool(2, 2) + _conv(160, 3) + _conv(192, 3) + _conv(96, 1) + _conv(192, 3) + heads[0]
            return text + _lateral(-4, 48, 4) + _conv(96, 3) + heads[1]
        case "yolov3_tiny" | "yolov3_tiny_3l":
            text += "".join(_conv(filters, 3) + _pool(2, 2) for filters in (16, 32, 64, 128, 256))
            text += _conv(512, 3) + _pool(2, 1) + _conv(1024, 3) + _conv(256, 1) + _conv(512, 3) + heads[0]
            text += _lateral(-4, 128, 8) + _conv(256, 3) + heads[1]
            return text if len(heads) == 2 else text + _lateral(-3, 128, 6) + _conv(128, 3) + heads[2]
    text += _conv(32, 3)
    for filters, repeats in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        text += _conv(filters, 3, 2) + repeats * (_conv(filters // 2, 1) + _conv(filters, 3) + _SHORTCUT)
    for narrow, skip, head in zip((512, 256, 128), (None, 61, 36), heads, strict=True):
        pair = _conv(narrow, 1) + _conv(2 * narrow, 3)
        if skip is not None:
            text += _lateral(-4, narrow, skip)
        elif network.architecture == "yolov3_spp":
            text += pair + _conv(narrow, 1)
            text += f"{_pool(5, 1)}{_route(-2)}{_pool(9, 1)}{_route(-4)}{_pool(13, 1)}{_route(-1, -3, -5, -6)}"
            text += pair + pair + head
            continue
        text += 3 * pair + head
    return text


def _conv(filters: int, size: int, stride: int = 1) -> str:
    return (
        f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\n"
        "activation=leaky\n\n"
    )


def _pool(size: int, stride: int) -> str:
    return f"[maxpool]\nsize={size}\nstride={stride}\n\n"


def _route(*layers: int) -> str:
    return f"[route]\nlayers={','.join(map(str, layers))}\n\n"


def _lateral(branch: int, filters: int, skip: int) -> str:
    return f"{_route(branch)}{_conv(filters, 1)}[upsample]\nstride=2\n\n{_route(-1, skip)}"


def _head(groups: tuple[tuple[tuple[float, float], ...], ...], index: int, classes: int, scale_xy: float) -> str:
    finer = sum(len(group) for group in groups[index + 1 :])
    mask = ",".join(str(finer + place) for place in range(len(groups[index])))
    anchors = ", ".join(f"{width:.9g},{height:.9g}" for group in reversed(groups) for width, height in group)
    return (
        f"[convolutional]\nsize=1\nstride=1\npad=1\nfilters={len(groups[index]) * (5 + classes)}\nactivation=linear\n\n"
        f"[yolo]\nmask={mask}\nanchors={anchors}\nclasses={classes}\nnum={sum(map(len, groups))}\n"
        f"scale_x_y={scale_xy:g}\n\n"
    )
