from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from written_samples import bright_boxes

from boxtwin.datasets.image_io import read_image, write_png
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.synthesis.ddpm import model as pixel_model
from boxtwin.synthesis.ddpm.model import STATE_FILE, WEIGHTS_FILE
from boxtwin.synthesis.ddpm.sampling import (
    match_grain,
    match_histogram,
    match_level,
    match_texture,
    noise_levels,
    object_mask,
    sdedit,
    strength_map,
)
from boxtwin.synthesis.ddpm.training_crops import Tone
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Generator, Request

TINY: dict[str, Any] = {
    "train_strength": 0.6,
    "mask": "boxes",
    "joint": 0.0,
    "strength": 0.6,
    "object_strength": 0.5,
    "object_margin": 4,
    "steps": 3,
    "eta": 0.0,
    "rho": 1.5,
    "texture": 1.0,
    "texture_window": 16,
    "histogram": True,
    "tone": "log",
    "channels": (8, 16),
    "unshuffle": 2,
    "crop": 16,
    "object_crops": 0.5,
    "mirror": True,
    "train_steps": 6,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "ema": 0.9,
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
}


def fitted(tmp_path: Path, samples: list[Sample], **settings: Any) -> PixelDDPM:
    generator = PixelDDPM(**{**TINY, **settings})
    generator.fit(samples, tmp_path / "store")
    return generator


def model_folder(folder: Path) -> Path:
    """The one model below a folder of models."""
    (found,) = (folder / "store").glob("pixel_ddpm-*")
    return found


def pixels_of(generator: PixelDDPM, *requests: Request) -> list[np.ndarray]:
    return [variation.pixels for variation in generator.vary(requests)]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((32, 32), np.uint8),
        ((32, 32), np.uint16),
        ((37, 21, 3), np.uint8),  # no multiple of anything, colour
        ((11, 50, 3), np.uint16),  # lower than a crop
        ((3, 2), np.uint8),  # smaller than the network's coarsest pixel
    ],
)
def test_a_variation_has_size_channels_and_depth_of_its_source(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any
) -> None:
    boxes = ((8, 3, 18, 9),) if shape[0] > 3 else ()
    sample = bright_boxes(tmp_path, "a.png", shape, dtype, boxes)
    generator: Generator = fitted(tmp_path, [sample], train_steps=2)
    (variation,) = generator.vary([Request(sample, 1, 7)])
    source = read_image(sample.path)
    assert variation.pixels.shape == source.shape
    assert variation.pixels.dtype == source.dtype
    assert (variation.pixels != source).any()
    np.testing.assert_array_equal(variation.boxes, sample.boxes)
    np.testing.assert_array_equal(variation.labels, sample.labels)


def test_grey_stored_as_three_channels_stays_grey(tmp_path: Path) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    write_png(sample.path, np.repeat(read_image(sample.path)[:, :, None], 3, axis=2))
    (made,) = pixels_of(fitted(tmp_path, [sample]), Request(sample, 1, 0))
    assert made.shape == (32, 32, 3)
    assert (made == made[:, :, :1]).all()


def test_a_seed_makes_the_same_bytes_alone_and_among_others(tmp_path: Path) -> None:
    a, b = bright_boxes(tmp_path, "a.png"), bright_boxes(tmp_path, "b.png", boxes=())
    generator = fitted(tmp_path, [a, b])
    together = pixels_of(generator, Request(b, 1, 3), Request(a, 1, 1), Request(a, 2, 2))
    (alone,) = pixels_of(generator, Request(a, 1, 1))
    np.testing.assert_array_equal(together[1], alone)
    assert (together[1] != together[2]).any()
    (loaded,) = pixels_of(fitted(tmp_path, [a, b]), Request(a, 1, 1))
    np.testing.assert_array_equal(loaded, alone)


def test_strength_zero_gives_the_source_and_little_strength_nearly_so(tmp_path: Path) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    source = read_image(sample.path).astype(float)
    changes = []
    for at, strength in enumerate((0.0, 0.02, 0.6)):
        generator = fitted(tmp_path / str(at), [sample], strength=strength, object_strength=strength, texture=0.0)
        (made,) = pixels_of(generator, Request(sample, 1, 0))
        changes.append(np.abs(made.astype(float) - source).mean() / source.std())
    assert changes[0] == 0
    assert changes[1] < 0.05
    assert changes[2] > 4 * changes[1]


class KilledError(Exception):
    """Stands for a SIGKILL."""


def test_a_training_that_was_killed_continues_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = bright_boxes(tmp_path, "a.png")
    fitted(tmp_path / "whole", [sample])

    monkeypatch.setattr(pixel_model, "SECONDS_BETWEEN_SAVES", 0.0)
    save = pixel_model.save_state

    def save_then_die(state: dict[str, Any], file: Path) -> None:
        save(state, file)
        if state["step"] == 3:
            raise KilledError

    monkeypatch.setattr(pixel_model, "save_state", save_then_die)
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
        crops = generator.network.crops([sample])
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


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    grey, colour = bright_boxes(tmp_path, "a.png"), bright_boxes(tmp_path, "b.png", (32, 32, 3))
    with pytest.raises(RuntimeError, match="call fit first"):
        next(PixelDDPM(**TINY).vary([Request(grey, 1, 0)]))
    with pytest.raises(InputError, match="colour"):
        pixels_of(fitted(tmp_path, [grey]), Request(colour, 1, 0))
    with pytest.raises(InputError, match="at least one training image"):
        fitted(tmp_path, [])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("strength", 1.5),
        ("object_strength", 0.9),
        ("crop", 18),
        ("crop", 0),
        ("channels", ()),
        ("steps", 0),
        ("rho", 0.0),
        ("tone", "sqrt"),
        ("dtype", "float16"),
        ("device", "tpu"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=setting):
        PixelDDPM(**{**TINY, setting: value})


def test_parameters_name_every_setting_but_the_device() -> None:
    expected = {**TINY, "channels": [8, 16]}
    del expected["device"]
    assert PixelDDPM(**TINY).parameters() == expected


def test_object_mask_keeps_fractional_edges_and_clips() -> None:
    mask = object_mask(np.array([[1.5, 0.0, 3.0, 1.25], [-4.0, 3.0, 1.0, 9.0], [20.0, 20.0, 30.0, 30.0]]), 4, 5)
    expected = np.zeros((4, 5), dtype=np.float32)
    expected[0, 1:3] = 0.5, 1.0
    expected[1, 1:3] = 0.125, 0.25
    expected[3, 0] = 1
    np.testing.assert_allclose(mask, expected)
    assert object_mask(np.zeros((0, 4)), 4, 5).sum() == 0


def test_strength_rises_from_object_to_background() -> None:
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 18:22, 18:22] = 1
    row = strength_map(mask, 0.8, 0.5, 8)[0, 0, 20]
    assert torch.allclose(row[18:22], torch.tensor(0.5))
    assert torch.allclose(row[[0, 8, 31, 39]], torch.tensor(0.8))
    assert (row[22:31].diff() >= 0).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sdedit_with_the_exact_denoiser_of_gaussian_noise_keeps_its_spread(eta: float) -> None:
    # For data N(0, 1) the best guess of v is 0 (alpha eps and sigma x_0 are alike), so x must stay N(0, 1), but for
    # what steps of finite length lose.
    source = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    made = sdedit(
        lambda x, _: torch.zeros_like(x),
        source,
        torch.full_like(source, 0.9),
        steps=200,
        rho=1.5,
        eta=eta,
        generator=torch.Generator().manual_seed(1),
    )
    assert float(made.std()) == pytest.approx(float(source.std()), abs=0.03)


def test_sdedit_with_an_oracle_gives_the_oracles_image() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 1, 1, 16, 16, generator=generator)
    strength = torch.full_like(source, 0.8)
    strength[..., :8] = 0  # these pixels are to be kept

    def predict_v(x: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = noise_levels(torch.tensor(t))
        return alpha * (x - alpha * target) / sigma - sigma * target

    made = sdedit(predict_v, source, strength, steps=5, rho=1.5, eta=0.0, generator=generator)
    assert torch.allclose(made[..., 8:], target[..., 8:], atol=1e-4)
    assert torch.allclose(made[..., :8], source[..., :8], atol=1e-4)


def test_texture_matching_restores_strength_and_direction_of_the_grain() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1, 1, 64, 64, generator=generator)
    source[..., 32:] *= 2
    source[..., 1::2, :] = source[..., ::2, :]  # coarser down than across
    x = 0.6 * torch.randn(1, 1, 64, 64, generator=generator)
    made = match_texture(x, source, 16, 1.0)

    def across_and_down(image: torch.Tensor) -> list[float]:
        halves = (image[..., :24], image[..., 40:])
        return [float(half.diff(dim=axis).std()) for half in halves for axis in (2, 3)]

    before, after, wanted = map(across_and_down, (x, made, source))
    assert max(abs(np.log(np.divide(before, wanted)))) > 0.8
    assert max(abs(np.log(np.divide(after, wanted)))) < 0.2
    assert torch.equal(match_texture(x, source, 16, 0.0), x)
    assert torch.isfinite(match_texture(torch.zeros_like(x), source, 16, 1.0)).all()


def test_histogram_matching_keeps_the_order_and_takes_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    x, source = torch.randn(1, 2, 20, 30, generator=generator), torch.rand(1, 2, 20, 30, generator=generator) ** 3
    made = match_histogram(x, source)
    for channel in range(2):
        assert torch.equal(made[0, channel].flatten().sort().values, source[0, channel].flatten().sort().values)
        assert torch.equal(made[0, channel].flatten().argsort(), x[0, channel].flatten().argsort())
    assert torch.equal(match_histogram(source, source), source)


def test_grain_and_level_are_those_of_the_ground_around() -> None:
    generator = torch.Generator().manual_seed(0)
    ground = torch.randn(1, 1, 96, 96, generator=generator) + torch.linspace(0, 3, 96)
    zone = torch.zeros_like(ground)
    zone[..., 30:60, 30:60] = 1
    x = ground * (1 - zone) + zone * (0.3 * torch.randn(1, 1, 96, 96, generator=generator) - 4)
    made = match_grain(match_level(x, zone, 1 - zone, 41), zone, ground, 1 - zone)
    inside = made[..., 30:60, 30:60]
    assert torch.equal(made[..., :30, :], x[..., :30, :])
    assert float(inside.mean()) == pytest.approx(float(ground[..., 30:60, 30:60].mean()), abs=0.2)
    assert float(inside.diff(dim=2).std()) == pytest.approx(float(ground.diff(dim=2).std()), rel=0.15)
    nothing = torch.zeros_like(zone)
    assert torch.equal(match_level(match_grain(x, zone, ground, nothing), zone, nothing, 41), x)
    assert torch.equal(match_level(match_grain(x, nothing, ground, zone), nothing, zone, 41), x)


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_tone_goes_there_and_back_and_standardises(kind: Any) -> None:
    image = np.random.default_rng(0).gamma(1, 0.05, size=(1, 64, 64)).astype(np.float32)
    tone = Tone.measure(kind, [image])
    x = tone.encode(image)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(tone.decode(x), image, atol=1e-5)
    black = Tone.measure(kind, [np.zeros((1, 4, 4), dtype=np.float32)])
    assert np.isfinite(black.encode(np.zeros((1, 4, 4), dtype=np.float32))).all()
