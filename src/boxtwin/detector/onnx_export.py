"""A trained detector as one ONNX file: images in, boxes and scores out, before non-maximum suppression."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from boxtwin.detector.checkpoint import TrainedDetector
from boxtwin.detector.decode import boxes_and_scores
from boxtwin.detector.network import YOLOv3
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `export`
# What the file's outputs may differ from torch's by, because the two add up in another order: scores and small boxes by
# this, larger boxes by this share of their largest coordinate.
TOLERANCE = 1e-3


class _Decoded(nn.Module):
    """The network with its decoding, in operators that every ONNX runtime has."""

    def __init__(self, network: YOLOv3, scale_xy: float) -> None:
        super().__init__()
        self.network = network
        self.scale_xy = scale_xy

    def forward(
        self, images: Float[Tensor, "batch _channels size size"]
    ) -> tuple[Float[Tensor, "batch places 4"], Float[Tensor, "batch places classes"]]:
        anchors, strides = self.network.anchors, self.network.strides
        return boxes_and_scores(self.network(images), anchors, strides, scale_xy=self.scale_xy)


def require_packages() -> None:
    """Raise `InputError` with the command to install them if packages of the extra `export` are missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}; install with: pip install 'boxtwin[export]'")


def write_onnx(detector: TrainedDetector, path: Path) -> None:
    """Write a detector as ONNX, after checking that ONNX Runtime computes from it what torch does.

    Input ``images``: float32 ``(batch, channels, side, side)``, any batch; pixels from `black` to `white` scaled to
    [0, 1], RGB or grey, letterboxed to ``image_size`` or cut into tiles. Outputs, one row for each place where a box
    can be predicted: ``boxes`` ``(batch, places, 4)``, xyxy, pixels of the letterboxed image; ``scores`` ``(batch,
    places, classes)``, objectness * class probability. The file's metadata hold the fields of `DetectorSpec` and these
    descriptions.

    Raises:
        InputError: packages are missing.
        RuntimeError: ONNX Runtime computes something else.
    """
    require_packages()
    import onnx  # here: an extra
    import onnxruntime

    spec = detector.spec
    network = detector.module.network.float().cpu().eval()
    decoded = _Decoded(network, detector.module.loss.scale_xy).eval()
    # Noise, two images: shows every path at work, and a batch of 1 would be taken for a constant.
    example = torch.rand(2, spec.channels, spec.side, spec.side, generator=torch.Generator().manual_seed(0))
    with _quiet_tracing():
        program = torch.onnx.export(
            decoded,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["boxes", "scores"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )
    assert program is not None
    model = program.model_proto
    # torch notes down which line of which file on this machine each operator comes from.
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, graph, model):
        del part.metadata_props[:]
    size = f"{spec.side}, {spec.side}"
    texts = {
        "images": f"(batch, {spec.channels}, {size}) float32 in [0, 1]: {'RGB' if spec.channels == 3 else 'grey'} "
        f"(pixels - {spec.black}) / {spec.white - spec.black}, letterboxed",
        "boxes": "(batch, places, 4) float32: xyxy, pixels of the letterboxed image, before non-maximum suppression",
        "scores": f"(batch, places, {len(spec.classes)}) float32 in [0, 1]: objectness * class probability",
    }
    for value in (*graph.input, *graph.output):
        value.doc_string = texts[value.name]
    model.producer_name, model.producer_version = "boxtwin", spec.boxtwin
    origin = {f"origin.{name}": value for name, value in detector.origin.items()}
    described = {"inputs": json.dumps({"images": texts.pop("images")}), "outputs": json.dumps(texts)}
    onnx.helper.set_model_props(model, {**spec.to_text(), **origin, **described})
    content = model.SerializeToString()

    if not graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise RuntimeError("torch made a constant of the batch size")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    computed = session.run(["boxes", "scores"], {"images": example.numpy()})
    with torch.no_grad():
        expected = decoded(example)
    for name, ours, theirs in zip(("boxes", "scores"), expected, computed, strict=True):
        largest = np.abs(ours.numpy()).max(axis=-1, keepdims=True).clip(min=1)
        difference = float((np.abs(ours.numpy() - theirs) / largest).max())
        if not difference <= TOLERANCE:  # so that nan is refused too
            raise RuntimeError(f"ONNX Runtime computes other {name} than torch, up to {difference:g} apart")
    write_bytes_atomically(path, content)


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Silence warnings that a user cannot act on, and trace nothing but the network."""
    # torch warns of missing operators of torchvision, which is not needed.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level, checks_off = registration.level, jaxtyping.config.jaxtyping_disable
    registration.setLevel(logging.ERROR)
    # Checks of shapes, where they are on, look at the batch size, which makes a constant of it.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            # torch 2.13 asks itself for a class that goes away later.
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
            yield
    finally:
        registration.setLevel(level)
        jaxtyping.config.update("jaxtyping_disable", checks_off)
