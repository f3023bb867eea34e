from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from boxtwin.datasets.sample import Lineage, Sample
from boxtwin.datasets.splits import Split
from boxtwin.mixing.options import BatchOptions
from boxtwin.mixing.plan import Plan, draw_order, make_plan


def real(name: str) -> Sample:
    none = np.zeros((0, 4), dtype=np.float32)
    return Sample(
        name, Path(name), 9, 9, 1, none, np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=bool), group=name
    )


def twin(source: str, number: int = 1) -> Sample:
    sample = real(f"store/{source}/v{number:02d}.png")
    object.__setattr__(sample, "lineage", Lineage(source, "noise", number, 0))
    return sample


def make_split(train: int = 4, val: int = 2, test: int = 3) -> Split:
    sides = (tuple(real(f"{side}{n}.png") for n in range(count)) for side, count in zip("abc", (train, val, test)))  # noqa: B905
    return Split("s", *sides)


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.name for sample in samples]


def test_variations_go_to_the_side_of_their_source() -> None:
    split = make_split()
    variations = [twin(sample.name, n) for sample in (*split.val, *split.train) for n in (1, 2)]
    plan = make_plan(split, variations)
    assert names(plan.train)[:4] == names(split.train)
    assert (plan.real_train, plan.synthetic_train) == (4, 8)
    assert names(plan.val) == names(split.val)
    assert len(plan.val_synthetic) == 4
    assert {sample.lineage.source for sample in plan.train if sample.lineage} == set(names(split.train))
    assert {sample.lineage.source for sample in plan.val_synthetic if sample.lineage} == set(names(split.val))
    assert names(plan.test) == names(split.test)


def test_no_variations_leave_the_split() -> None:
    split = make_split()
    plan = make_plan(split, [])
    assert names(plan.train) == names(split.train)
    assert plan.val_synthetic == ()


def test_variations_of_test_or_unknown_images_are_refused_by_name() -> None:
    split = make_split()
    with pytest.raises(ValueError, match=r"store/c1\.png/v01\.png \(a variation of c1\.png\) on the validation side"):
        make_plan(split, [twin("a0.png"), twin("c1.png")])
    with pytest.raises(ValueError, match="a variation of elsewhere"):
        make_plan(split, [twin("elsewhere.png")])


def test_a_real_image_among_the_variations_is_refused() -> None:
    split = make_split()
    for stray in (split.train[0], split.val[0], split.test[0]):
        with pytest.raises(ValueError, match=rf"{stray.name} is no variation"):
            make_plan(split, [stray])


def test_every_stray_is_named() -> None:
    split = make_split()
    with pytest.raises(ValueError, match="its source's side") as caught:
        Plan(
            train=(*split.train, twin("b0.png")),
            val=(*split.val, twin("b1.png")),
            val_synthetic=(twin("a0.png"), split.test[0]),
            test=(*split.test, twin("c0.png")),
        )
    message = str(caught.value)
    assert "store/b0.png/v01.png (a variation of b0.png) on the training side" in message
    assert "store/a0.png/v01.png (a variation of a0.png) on the validation side" in message
    assert "c0.png is no variation" in message
    assert "store/b1.png/v01.png is synthetic, on the validation side" in message
    assert "store/c0.png/v01.png is synthetic, on the test side" in message


def test_extra_images_are_drawn_and_are_no_labelled_images() -> None:
    split, extra = make_split(), (real("x0.png"), real("x1.png"))
    plan = make_plan(split, [twin(sample.name) for sample in split.train], extra)
    assert (plan.real_train, plan.synthetic_train, names(plan.pool)[-2:]) == (4, 4, ["x0.png", "x1.png"])
    order = draw_order(plan, BatchOptions(steps_per_epoch=1, steps=20, batch_size=4, seed=0))
    assert set(Counter(order.reshape(-1).tolist()).values()) == {8}
    # They are real: a share of synthetic images leaves the rest of a batch to labelled and extra images alike.
    shared = BatchOptions(steps_per_epoch=1, steps=24, batch_size=4, seed=0, synthetic_fraction=0.25)
    drawn = Counter(draw_order(plan, shared).reshape(-1).tolist())
    assert [drawn[place] for place in range(10)] == [12] * 4 + [6] * 4 + [12] * 2


def test_extra_images_have_no_variations_and_are_none() -> None:
    split, extra = make_split(), real("x0.png")
    with pytest.raises(ValueError, match="a variation of x0"):
        make_plan(split, [twin("x0.png")], (extra,))
    with pytest.raises(ValueError, match=r"v01\.png, an image beside the split, is synthetic"):
        make_plan(split, [], (twin("a0.png"),))
    object.__setattr__(split.test[0], "sha256", "ab")
    object.__setattr__(extra, "sha256", "ab")
    with pytest.raises(ValueError, match=r"x0\.png, an image beside the split, is a validation or test image"):
        make_plan(split, [], (extra,))


def test_there_are_training_images() -> None:
    with pytest.raises(ValueError, match="needs training images"):
        make_plan(make_split(0, 2, 3), [])
    assert make_plan(make_split(4, 0, 0), []).real_train == 4


def plan_with(per_image: int, train: int = 4) -> Plan:
    split = make_split(train)
    return make_plan(split, [twin(sample.name, n + 1) for sample in split.train for n in range(per_image)])


@pytest.mark.parametrize("per_image", [0, 2, 10])
@pytest.mark.parametrize(("steps", "batch_size"), [(11, 16), (1, 1), (50, 7), (3, 2)])
def test_every_image_is_drawn_equally_often(per_image: int, steps: int, batch_size: int) -> None:
    plan = plan_with(per_image)
    order = draw_order(
        plan, BatchOptions(steps_per_epoch=1, steps=steps, batch_size=batch_size, seed=0, synthetic_fraction=None)
    )
    assert order.shape == (steps, batch_size)
    drawn = Counter(order.reshape(-1).tolist())
    assert set(drawn) <= set(range(len(plan.train)))
    times = [drawn[index] for index in range(len(plan.train))]
    assert max(times) - min(times) <= 1
    # Passes: no image comes a second time before all the others have come.
    first = order.reshape(-1)[: len(plan.train)]
    assert len(set(first.tolist())) == len(first)


def test_the_order_is_the_seeds_and_a_shorter_run_is_its_beginning() -> None:
    plan = plan_with(2)

    def order(steps: int = 40, seed: int = 3) -> np.ndarray:
        return draw_order(
            plan, BatchOptions(steps_per_epoch=1, steps=steps, batch_size=5, seed=seed, synthetic_fraction=None)
        )

    np.testing.assert_array_equal(order(), order())
    np.testing.assert_array_equal(order(17), order()[:17])
    assert (order() != order(seed=4)).any()
    flat = order().reshape(-1)
    assert (flat[:12] != flat[12:24]).any()  # shuffled anew for every pass


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.3, 0.5, 2 / 3, 1.0])
@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_a_share_is_kept_in_every_batch(fraction: float, batch_size: int) -> None:
    plan = plan_with(10)
    steps = 60
    order = draw_order(
        plan, BatchOptions(steps_per_epoch=1, steps=steps, batch_size=batch_size, seed=1, synthetic_fraction=fraction)
    )
    is_synthetic = np.array([sample.lineage is not None for sample in plan.train])
    per_batch = is_synthetic[order].sum(axis=1)
    assert (abs(per_batch - fraction * batch_size) <= 1).all()
    # What rounding takes is given back: the sum never strays.
    assert (abs(np.cumsum(per_batch) - fraction * batch_size * np.arange(1, steps + 1)) <= 0.5 + 1e-9).all()
    drawn = Counter(order.reshape(-1).tolist())
    for pool in (np.flatnonzero(is_synthetic), np.flatnonzero(~is_synthetic)):
        times = [drawn[index] for index in pool.tolist()]
        assert max(times) - min(times) <= 1
    again = draw_order(
        plan, BatchOptions(steps_per_epoch=1, steps=steps, batch_size=batch_size, seed=1, synthetic_fraction=fraction)
    )
    np.testing.assert_array_equal(order, again)


def test_a_share_of_nothing_is_all_real() -> None:
    plan = plan_with(0)
    with_share, without = (
        draw_order(plan, BatchOptions(steps_per_epoch=1, steps=9, batch_size=4, seed=0, synthetic_fraction=f))
        for f in (0.5, None)
    )
    np.testing.assert_array_equal(with_share, without)


@pytest.mark.parametrize("falls", [False, True])
@pytest.mark.parametrize("fraction", [None, 0.5])
def test_images_of_the_pretraining_fill_their_share(fraction: float | None, falls: bool) -> None:
    split = make_split()
    earlier = tuple(real(f"sim{n}.png") for n in range(5))
    plan = make_plan(split, [twin(sample.name) for sample in split.train], pretraining=earlier)
    steps, batch_size, share = 40, 8, 0.3
    batches = BatchOptions(
        steps=steps,
        steps_per_epoch=steps,
        batch_size=batch_size,
        seed=3,
        synthetic_fraction=fraction,
        pretraining_share=share,
        pretraining_share_falls=falls,
    )
    order = draw_order(plan, batches)
    is_earlier = order >= len(plan.train)
    shown = np.cumsum(is_earlier.sum(axis=1))
    t = np.arange(1, steps + 1)
    expected = batch_size * share * (t - t**2 / (2 * steps) if falls else t)
    assert np.abs(shown - expected).max() <= 0.5
    assert order.max() < len(plan.train) + len(earlier)
    counts = Counter(order[is_earlier].tolist())
    assert max(counts.values()) - min(counts.values()) <= 1
    variations = sum(plan.train[i].lineage is not None for i in order[~is_earlier])
    assert abs(variations - (~is_earlier).sum() / 2) <= 4
