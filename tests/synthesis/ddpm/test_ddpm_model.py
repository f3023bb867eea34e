"""Training the own diffusion model: kills, damaged files, seeds and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_ddpm import fitted, model_folder, pixels_of
from written_samples import bright_boxes

from boxtwin.errors import InputError
from boxtwin.synthesis import training
from boxtwin.synthesis.ddpm.model import TrainingCrops
from boxtwin.synthesis.generator import Request
from boxtwin.synthesis.training import STATE_FILE, WEIGHTS_FILE
from boxtwin.weights import save_state


class KilledError(Exception):
    """Stands for a SIGKILL."""


def test_a_training_that_was_killed_continues_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    fitted(tmp_path / "whole", [sample])

    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)

    def save_then_die(state: dict[str, Any], file: Path) -> None:
        save_state(state, file)
        if state["step"] == 3:
            raise KilledError

    monkeypatch.setattr(training, "save_state", save_then_die)
    with pytest.raises(KilledError):
        fitted(tmp_path / "cut", [sample])
    store = model_folder(tmp_path / "cut")
    assert (store / STATE_FILE).exists()
    assert not (store / WEIGHTS_FILE).exists()
    fitted(tmp_path / "cut", [sample])
    assert not (store / STATE_FILE).exists()
    whole, cut = load_file(model_folder(tmp_path / "whole") / WEIGHTS_FILE), load_file(store / WEIGHTS_FILE)
    assert whole.keys() == cut.keys()
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name


def same_weights(file: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = load_file(file)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("harm", ["flipped", "nan", "none"])
def test_damaged_weights_are_named_and_learnt_again(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    expected = pixels_of(fitted(tmp_path, [sample]), Request(sample, 1, 0))
    file = model_folder(tmp_path) / WEIGHTS_FILE
    weights = {name: value.clone() for name, value in load_file(file).items()}  # what it gives is the file's memory
    if harm == "flipped":
        content = bytearray(file.read_bytes())
        content[-500] ^= 64
        file.write_bytes(content)
    else:  # a file of an earlier version, which has no checksum
        with safe_open(file, framework="pt") as stored:
            about = {key: text for key, text in stored.metadata().items() if key != "sha256"}
        save_file({name: value * (torch.nan if harm == "nan" else 1) for name, value in weights.items()}, file, about)
    np.testing.assert_array_equal(pixels_of(fitted(tmp_path, [sample]), Request(sample, 1, 0)), expected)
    assert (str(file) in caplog.text) is (harm != "none")
    assert same_weights(file, weights)


def test_a_damaged_training_state_is_named_and_training_begins_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    fitted(tmp_path, [sample])
    file = model_folder(tmp_path) / WEIGHTS_FILE
    weights = load_file(file)
    file.replace(file.with_name(STATE_FILE))  # what lies there is no state
    fitted(tmp_path, [sample])
    assert STATE_FILE in caplog.text
    assert same_weights(file, weights)


def test_weights_follow_the_seed_and_leave_the_global_random_state_alone(tmp_path: Path) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    before = torch.random.get_rng_state()
    weights = []
    for at, seed in enumerate((0, 0, 1)):
        fitted(tmp_path / str(at), [sample], seed=seed)
        weights.append(load_file(model_folder(tmp_path / str(at)) / WEIGHTS_FILE)["conv_in.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_lowers_the_error(tmp_path: Path) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    errors = []
    for at, steps in enumerate((1, 150)):
        generator = fitted(tmp_path / str(at), [sample], train_steps=steps, learning_rate=3e-3, batch_size=4)
        assert generator.network.net is not None
        crops = TrainingCrops([sample], generator.network.settings)
        rng = torch.Generator().manual_seed(5)
        with torch.no_grad():
            errors.append(
                np.mean([float(generator.network.loss(generator.network.net, crops, rng)) for _ in range(20)])
            )
    assert errors[1] < 0.9 * errors[0]


def test_models_of_other_images_or_settings_lie_side_by_side(tmp_path: Path) -> None:
    a, b = bright_boxes(tmp_path, "a.png"), bright_boxes(tmp_path, "b.png")
    first = fitted(tmp_path, [a])
    others = [fitted(tmp_path, [b]), fitted(tmp_path, [a], train_steps=7)]
    names = {f"{model.id}-{model.revision}" for model in (first.model(), *(other.model() for other in others)) if model}
    assert names == {path.name for path in (tmp_path / "store").iterdir()}
    assert len(names) == 3
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob(f"*/{WEIGHTS_FILE}")}
    assert fitted(tmp_path, [a], steps=5).model() == first.model()  # does not touch the weights
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob(f"*/{WEIGHTS_FILE}")} == made


def test_a_model_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    a, b = bright_boxes(tmp_path, "a.png"), bright_boxes(tmp_path, "b.png")
    fitted(tmp_path / "a", [a])
    fitted(tmp_path / "b", [b])
    (model_folder(tmp_path / "a") / WEIGHTS_FILE).replace(model_folder(tmp_path / "b") / WEIGHTS_FILE)
    with pytest.raises(InputError, match="other images"):
        fitted(tmp_path / "b", [b])
