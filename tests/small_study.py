"""Overrides of a study small enough for tests: 24 simulated chips of 64 pixels, 6 and 4 of them to learn from."""

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
