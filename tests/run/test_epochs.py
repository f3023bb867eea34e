"""`trainer.epochs`: how many steps a run takes, and that a run is known by them."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from small_study import SMALL

from boxtwin.config.arguments import quote_numbers
from boxtwin.config.compose import register, to_object
from boxtwin.config.identity import defining_values, flat_params, run_folder
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.errors import InputError
from boxtwin.mixing.plan import make_plan
from boxtwin.run.build import Prepared, labelling_runs, make_data, make_detector, prepare

ROOT = Path(__file__).parents[2]
Compose = Callable[..., BoxtwinConfig]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    folder = tmp_path_factory.mktemp("data")
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):

        def with_overrides(*overrides: str) -> BoxtwinConfig:
            chosen = ("generator=repeat", "detector=yolov3_nano", "detector.warmup_steps=1", f"data={folder}")
            typed = quote_numbers((*SMALL, *chosen, *overrides), ROOT / "conf" / "variations")
            return to_object(compose("config", typed), BoxtwinConfig)

        yield with_overrides


@pytest.mark.parametrize("variations", [0, 2, 10])
@pytest.mark.parametrize("train", [3, 6])
def test_an_epoch_is_a_pass_over_real_images_and_variations(composed: Compose, variations: int, train: int) -> None:
    size = f"split.train_size={train}"
    run = prepare(composed("trainer.epochs=7", f"variations={variations}", "trainer.batch_size=4", size))
    drawn = 7 * train * (1 + variations)
    assert run.steps == 6 * math.ceil(drawn / 4 / 6)  # six validations
    assert flat_params(run.config)["steps"] == run.steps
    assert make_detector(run).steps == run.steps
    plan = make_plan(run.split, ())
    assert len(make_data(run, plan).train_dataloader()) == run.steps // 6


def test_steps_stay_the_default(composed: Compose) -> None:
    plain = composed()
    assert (plain.trainer.steps, plain.trainer.epochs) == (1200, None)
    assert "epochs" not in defining_values(plain)["trainer"]
    assert composed("trainer.epochs=7").trainer.steps is None


def test_epochs_define_a_run_and_the_steps_follow(composed: Compose) -> None:
    def run(*more: str) -> Prepared:
        return prepare(composed("trainer.epochs=7", *more))

    assert run().identity == run().identity != run("trainer.epochs=8").identity
    assert "steps" not in run().condition["trainer"]
    assert run().condition["trainer"] == run("variations=2").condition["trainer"]
    # The folder is named before the images are read.
    assert run_folder(composed("trainer.epochs=7")) == run_folder(run().config)


def test_detectors_that_label_take_the_steps_of_a_run_without_variations(composed: Compose) -> None:
    run = prepare(composed("trainer.epochs=7", "variations=10", "labels=pseudo"))
    plain = prepare(composed("trainer.epochs=7", "variations=0"))
    first = labelling_runs(run.config, run.dataset, run.split)[0]
    assert (first.steps, first.identity) == (plain.steps, plain.identity)
    assert first.steps < run.steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.steps=600", "trainer.epochs=7"], r"trainer\.steps=600 and trainer\.epochs=7 are both set"),
        (["experiment=study", "trainer.epochs=7"], r"trainer\.steps=960 and trainer\.epochs=7 are both set"),
        (["trainer.steps=null"], r"trainer\.steps=None must be a multiple"),
        (["trainer.epochs=7", "variations=2", "variations.synthetic_fraction=0.5"], "once an epoch"),
        (["trainer.epochs=0"], r"trainer\.epochs=0 must be at least 1"),
        (["trainer.batch_threads=0"], r"trainer\.batch_threads=0 must be at least 1"),
        (["trainer.epochs=1", "detector.warmup_steps=6"], r"must be below trainer\.steps=6: raise trainer\.epochs=1"),
    ],
)
def test_settings_that_exclude_each_other(composed: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(composed(*overrides))
