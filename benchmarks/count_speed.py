"""What count.py takes for an image beside its network: reading, tiles, boxes, intervals, marks; without pictures.

python benchmarks/count_speed.py --run multirun/STUDY/RUN --images FOLDER
"""

from __future__ import annotations

from measuring import Clock, counting, counting_parser, report

import numpy as np  # isort: skip  (measuring sets the environment that torch reads)
import torch

from boxtwin.counting.ensemble import Counter
from boxtwin.counting.images import read_all
from boxtwin.mixing.letterbox import Labelled, network_input, take_view, views


def main() -> None:
    options = counting_parser(__doc__, "of the size of the training images")
    options.add_argument("--number", type=int, default=20, help="images of them that are taken")
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    detector, images = counting(arguments, arguments.number)
    counter, spec = Counter([detector], None), detector.spec
    batches = []
    for _, read in read_all(images, spec):
        assert not isinstance(read, str)
        assert isinstance(read[0].content, np.ndarray)
        pixels = spec.levels.scaled(read[0].content)
        image = Labelled(pixels, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        seen = views(pixels.shape[1], pixels.shape[0], size=spec.image_size, tile=spec.tile)
        shown = [take_view(image, view, spec.image_size)[0].pixels for view in seen]
        batches.append(np.ascontiguousarray(network_input(shown, channels=spec.channels)))
    network, clocks = detector.compute, {"network alone": Clock(), "count.py": Clock()}
    network(batches[0])
    for _ in range(arguments.rounds):
        with clocks["network alone"]:
            for batch in batches:
                network(batch)
        with clocks["count.py"]:
            for _, read in read_all(images, spec):
                assert not isinstance(read, str)
                counter(read[0])
    taken = arguments.rounds * len(batches)
    first = clocks["network alone"].cpu
    rows = [(name, clock.cpu / taken * 1e3, clock.cpu / first) for name, clock in clocks.items()]
    title = f"{spec.architecture}, {spec.side} pixels, {len(batches)} images, {arguments.rounds} rounds"
    report(f"{title}, {torch.get_num_threads()} thread", ("part", "CPU ms an image", "ratio"), rows)


if __name__ == "__main__":
    main()
