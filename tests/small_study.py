"""A study small enough for tests: 24 simulated chips of 64 pixels, 6 and 4 of them to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register, to_object
from boxtwin.config.schema import BoxtwinConfig

CONF = Path(__file__).parents[1] / "conf"
Compose = Callable[..., BoxtwinConfig]
SMALL = (
    "dataset.build.images=24",
    "dataset.build.image_size=64",
    "dataset.build.chips_per_scene=2",
    "dataset.image_size=64",
    "split.train=6",
    "split.train_pool=8",
    "split.val=4",
    "split.test=8",
)


@contextmanager
def composing(root: Path, data: Path, *always: str) -> Iterator[Compose]:
    """A function from overrides to the configuration of a study on chips that were built in ``root`` before.

    What the study makes lies in ``data``. The function may be called until the context ends.
    """
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):

        def with_overrides(*overrides: str) -> BoxtwinConfig:
            places = (f"data={data}", "dataset=coco", "dataset.name=scenes", f"dataset.root={root}")
            small = [value for value in SMALL if ".build." not in value]
            typed = (*places, *small, "detector=yolov3_nano", "generator=repeat", *always, *overrides)
            return to_object(compose("config", quote_numbers(typed, CONF / "variations")), BoxtwinConfig)

        yield with_overrides
