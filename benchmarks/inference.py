"""Prediction in four ways, in turns: plain float32, channels last, batch normalisation folded, bfloat16.

python benchmarks/inference.py
"""

from __future__ import annotations

from collections.abc import Callable

from measuring import Clock, parser, prepared, report

import torch  # isort: skip  (measuring sets the environment that torch reads)
from torch import Tensor, nn

from boxtwin.detector.network import folded
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import make_data, make_detector


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5, help="batches that each form sees")
    arguments = options.parse_args()
    run = prepared(arguments)
    module = make_detector(run).eval()
    batch = next(iter(make_data(run, make_plan(run.split, ())).letterboxed(run.split.test)))
    plain = make_detector(run).eval().network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    last = batch.images.contiguous(memory_format=torch.channels_last)

    def forms(network: nn.Module, images: Tensor, bfloat16: bool = False) -> Callable[[], object]:
        def predict() -> object:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                return network(images)

        return predict

    ways = {
        "float32": forms(plain, batch.images.contiguous()),
        "float32, channels last": forms(module.network, last),
        "float32, channels last, folded": forms(folded(module.network), last),
        "bfloat16, channels last": forms(module.network, last, bfloat16=True),
        "bfloat16, channels last, folded": forms(folded(module.network), last, bfloat16=True),
    }
    clocks = {name: Clock() for name in ways}
    for predict in ways.values():
        predict()
    for _ in range(arguments.rounds):
        for name, predict in ways.items():
            with clocks[name]:
                predict()
    with Clock() as after:
        for _ in range(arguments.rounds):
            module.detect(batch)
    images = arguments.rounds * len(batch.images)
    first = clocks["float32"]
    rows = [
        (name, clock.cpu / images * 1e3, clock.cpu / first.cpu, clock.wall / first.wall)
        for name, clock in clocks.items()
    ]
    decoding = after.cpu - clocks["float32, channels last"].cpu
    rows.append(("decoding boxes and NMS", decoding / images * 1e3, decoding / first.cpu, float("nan")))
    report(
        f"{arguments.architecture}, {arguments.image_size} pixels, batch {len(batch.images)}",
        ("network", "CPU ms an image", "CPU ratio", "wall ratio"),
        rows,
    )


if __name__ == "__main__":
    main()
