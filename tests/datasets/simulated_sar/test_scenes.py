"""The embedded data set: reproducible, valid COCO, exact boxes, and the physics its docstrings claim."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from boxtwin.datasets.image_io import read_image
from boxtwin.datasets.simulated_sar.layout import (
    MIN_BOX,
    Berths,
    Ship,
    Window,
    draw_ship,
    ship_scatterers,
    visible_box,
    well_cut,
)
from boxtwin.datasets.simulated_sar.physics import (
    Scatterers,
    Sensor,
    azimuth_ghosts,
    gamma_texture,
    impulse_response,
    join,
    multilook_intensity,
    scatterer_fields,
    wake,
)
from boxtwin.datasets.simulated_sar.scenes import build, simulate_scene
from boxtwin.errors import InputError

SMALL: dict[str, Any] = {"images": 8, "image_size": 96, "chips_per_scene": 3, "seed": 5}


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sar") / "scenes", **SMALL)


# The folder


def test_same_seed_same_bytes(small: Path, tmp_path: Path) -> None:
    assert digests(build(tmp_path / "again", **SMALL)) == digests(small)


def test_other_seed_other_pictures(small: Path, tmp_path: Path) -> None:
    other = digests(build(tmp_path / "other", **(SMALL | {"seed": 6})))
    assert not set(other.values()) & set(digests(small).values())


def test_scene_does_not_depend_on_how_many_are_built(small: Path, tmp_path: Path) -> None:
    first = digests(build(tmp_path / "first", **(SMALL | {"images": 3})))
    whole = digests(small)
    shared = [name for name in first if name.endswith(".png")]
    assert len(shared) == 3
    assert all(first[name] == whole[name] for name in shared)


def test_global_random_state_is_neither_read_nor_changed(tmp_path: Path, small: Path) -> None:
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state(legacy=False)["state"]["key"].tobytes()  # noqa: NPY002
    assert digests(build(tmp_path / "again", **SMALL)) == digests(small)
    assert np.random.get_state(legacy=False)["state"]["key"].tobytes() == before  # noqa: NPY002


def test_pycocotools_reads_it_and_boxes_are_sound(small: Path) -> None:
    coco = COCO(str(small / "annotations.json"))
    assert len(coco.getImgIds()) == SMALL["images"]
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "ship"}]
    assert coco.getAnnIds(), "eight images without a ship"
    for annotation in coco.loadAnns(coco.getAnnIds()):
        x, y, w, h = annotation["bbox"]
        assert min(w, h) >= MIN_BOX
        assert x >= 0
        assert y >= 0
        assert x + w <= SMALL["image_size"]
        assert y + h <= SMALL["image_size"]
        assert annotation["area"] == w * h
        assert annotation["iscrowd"] == 0
        assert annotation["image_id"] in coco.imgs
    assert len(coco.getAnnIds()) == len(json.loads((small / "annotations.json").read_text())["annotations"])


def test_pictures_are_8_bit_grey_and_named_after_their_scene(small: Path) -> None:
    images = json.loads((small / "annotations.json").read_text())["images"]
    assert sorted(p.name for p in (small / "images").iterdir()) == sorted(i["file_name"] for i in images)
    for image in images:
        pixels = read_image(small / "images" / image["file_name"])
        assert pixels.dtype == np.uint8
        assert pixels.shape == (image["height"], image["width"]) == (96, 96)
        assert re.fullmatch(r"S\d{4}_\d+_\d+\.png", image["file_name"])
    scenes = [image["file_name"].split("_")[0] for image in images]
    assert scenes == ["S0001"] * 3 + ["S0002"] * 3 + ["S0003"] * 2


def test_crops_of_a_scene_share_their_overlap() -> None:
    left, right = simulate_scene(np.random.default_rng(0), chips=2, size=96)
    if left.x == right.x:  # a transposed scene: the crops lie below one another
        overlap = left.pixels[72:], right.pixels[:24]
        offset = (0, right.y - left.y)
    else:
        overlap = left.pixels[:, 72:], right.pixels[:, :24]
        offset = (right.x - left.x, 0)
    assert sorted(offset) == [0, 72]
    np.testing.assert_array_equal(*overlap)


def test_some_chips_have_ships_and_some_are_empty_sea() -> None:
    chips = [c for s in range(12) for c in simulate_scene(np.random.default_rng([7, s]), chips=4, size=96)]
    counts = np.array([len(chip.boxes) for chip in chips])
    assert (counts == 0).any()
    assert (counts > 1).any()


def test_finished_build_is_left_as_it_is(tmp_path: Path) -> None:
    parameters = SMALL | {"images": 1, "chips_per_scene": 1}
    root = build(tmp_path / "set", **parameters)
    times = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert build(tmp_path / "set", **parameters) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == times


def test_other_parameters_are_refused(small: Path) -> None:
    before = digests(small)
    with pytest.raises(InputError, match=r"was built with .*Remove .* or give another folder"):
        build(small, **(SMALL | {"seed": 6}))
    assert digests(small) == before


def test_foreign_or_half_made_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="not a finished build"):
        build(tmp_path / "set", **SMALL)


def test_missing_image_is_noticed(tmp_path: Path) -> None:
    parameters = SMALL | {"images": 1, "chips_per_scene": 1}
    root = build(tmp_path / "set", **parameters)
    next((root / "images").iterdir()).unlink()
    with pytest.raises(InputError, match="lacks 1 of its 1 images"):
        build(root, **parameters)


def test_remains_of_a_killed_build_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".set.part" / "images").mkdir(parents=True)
    (tmp_path / ".set.part" / "images" / "S0009_0_0.png").write_bytes(b"half")
    root = build(tmp_path / "set", **(SMALL | {"images": 1, "chips_per_scene": 1}))
    assert len(list((root / "images").iterdir())) == 1
    assert not (tmp_path / ".set.part").exists()


@pytest.mark.parametrize(("name", "value"), [("images", 0), ("image_size", 32), ("chips_per_scene", 0), ("seed", -1)])
def test_parameters_out_of_range(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least"):
        build(tmp_path / "set", **(SMALL | {name: value}))
    assert not (tmp_path / "set").exists()


# The clutter


@pytest.mark.parametrize(("looks", "order"), [(1, 1.5), (1, 20.0), (3, 2.0), (4, 5.0)])
def test_k_clutter_has_the_moments_of_theory(looks: int, order: float) -> None:
    sensor = Sensor(bandwidth=(1.0, 1.0), taper=1.0, looks=looks)
    rng = np.random.default_rng(0)
    texture = gamma_texture(rng, (512, 512), order=order, correlation=3.0)
    clutter = multilook_intensity(rng, texture, join([]), sensor)
    assert clutter.mean() == pytest.approx(1.0, rel=0.03)
    second = (clutter**2).mean() / clutter.mean() ** 2
    assert second == pytest.approx((1 + 1 / looks) * (1 + 1 / order), rel=0.05)


def test_oversampled_speckle_is_correlated_but_keeps_its_power() -> None:
    sensor = Sensor(bandwidth=(0.5, 1.0), taper=1.0, looks=1)
    speckle = multilook_intensity(np.random.default_rng(0), np.ones((512, 512)), join([]), sensor)
    contrast = speckle - speckle.mean()
    rows = (contrast[1:] * contrast[:-1]).mean() / contrast.var()
    columns = (contrast[:, 1:] * contrast[:, :-1]).mean() / contrast.var()
    assert speckle.mean() == pytest.approx(1, rel=0.03)
    # Intensity correlation of speckle is the squared correlation of its field: sinc(0.5)^2.
    assert rows == pytest.approx(np.sinc(0.5) ** 2, abs=0.03)
    assert columns == pytest.approx(0, abs=0.03)


def test_gamma_texture_has_its_variance_and_is_smooth() -> None:
    texture = gamma_texture(np.random.default_rng(0), (512, 512), order=2.0, correlation=6.0)
    assert texture.mean() == pytest.approx(1, abs=0.01)
    assert texture.var() == pytest.approx(0.5, rel=0.05)
    assert np.corrcoef(texture[1:].ravel(), texture[:-1].ravel())[0, 1] > 0.9


# Targets


def test_side_lobes_form_a_cross_13_db_down() -> None:
    offset = np.linspace(1.0, 2.0, 2001)
    lobe = 20 * np.log10(np.abs(impulse_response(offset, 1.0, 1.0)).max())
    assert lobe == pytest.approx(-13.26, abs=0.01)
    assert impulse_response(np.zeros(1), 0.8, 0.75)[0] == 1.0
    sensor = Sensor(bandwidth=(0.8, 0.8), taper=1.0, looks=1)
    target = Scatterers(np.array([[40.5, 30.5]]), np.array([100.0]))
    field = np.abs(next(scatterer_fields(np.random.default_rng(0), target, (80, 80), sensor)))
    assert np.unravel_index(field.argmax(), field.shape) == (30, 40)
    assert field.max() == pytest.approx(100)
    on_axes = field[30, 48:60].mean(), field[38:50, 40].mean()
    assert min(on_axes) > 10 * field[38:50, 48:60].mean()


def test_hamming_taper_lowers_the_side_lobes() -> None:
    offset = np.linspace(2.0, 6.0, 4001)
    assert 20 * np.log10(np.abs(impulse_response(offset, 1.0, 0.54)).max()) < -40


def test_response_is_the_transform_of_the_passband() -> None:
    frequency = np.linspace(-0.35, 0.35, 20001)
    spectrum = 0.8 + 0.2 * np.cos(2 * np.pi * frequency / 0.7)
    offset = np.array([0.0, 0.6, 1.7, 5.3])
    numeric = np.trapezoid(spectrum * np.cos(2 * np.pi * np.outer(offset, frequency)), frequency, axis=1)
    expected = numeric / np.trapezoid(spectrum, frequency)  # of no offset
    np.testing.assert_allclose(impulse_response(offset, 0.7, 0.8), expected, atol=1e-6)


def test_ghosts_lie_along_azimuth_and_are_weaker() -> None:
    target = Scatterers(np.array([[50.0, 60.0]]), np.array([30.0]))
    ghosts = azimuth_ghosts(np.random.default_rng(0), target, shift=20.0, level=0.1, smear=0.0)
    assert set(ghosts.xy[:, 1]) == {40.0, 80.0}
    assert set(ghosts.xy[:, 0]) == {50.0}
    assert (ghosts.amplitude**2).sum() == pytest.approx(2 * 3.0**2)


def test_wake_is_dark_behind_the_ship_only() -> None:
    factor = wake(
        (60, 100),
        start=np.array([50.0, 30.0]),
        heading=0.0,
        beam=4.0,
        reach=40.0,
        darkness=0.8,
        arms=2.0,
        arm_angle=0.34,
    )
    assert (factor[:, 51:] == 1).all()
    assert factor[30, 38] < 0.5
    assert factor.max() > 1.5


@pytest.mark.parametrize(
    "sensor", [{"bandwidth": (0.0, 1.0)}, {"bandwidth": (1.0, 1.1)}, {"taper": 0.4}, {"looks": 0}], ids=str
)
def test_impossible_sensors_are_refused(sensor: dict[str, object]) -> None:
    sound: dict[str, object] = {"bandwidth": (0.8, 0.8), "taper": 1.0, "looks": 1}
    with pytest.raises(ValueError, match="got"):
        Sensor(**(sound | sensor))  # type: ignore[arg-type]


# Boxes


def test_scatterers_of_a_ship_lie_in_its_box() -> None:
    rng = np.random.default_rng(0)
    window = Window(0, 0, 200)
    for _ in range(50):
        ship = draw_ship(rng, xy=(100.0, 100.0), heading=float(rng.uniform(0, 2 * np.pi)), longest=60.0)
        found = visible_box(ship.hull(), window)
        assert found is not None
        (x1, y1, x2, y2), share = found
        assert share == pytest.approx(1)
        xy = ship_scatterers(rng, ship).xy
        # The outline is a little slimmer at bow and stern than the scatterers' own taper.
        assert (xy >= np.array([x1, y1]) - 0.75).all()
        assert (xy <= np.array([x2, y2]) + 0.75).all()
        hull = ship.hull()
        assert x1 <= hull[:, 0].min() < x1 + 1
        assert y2 - 1 < hull[:, 1].max() <= y2


def test_box_of_a_cut_hull_is_that_of_its_visible_part() -> None:
    # A square ship turned by 45 degrees, a corner of which looks over the left border.
    diamond = np.array([[-8.0, 50.0], [2.0, 40.0], [12.0, 50.0], [2.0, 60.0]])
    found = visible_box(diamond, Window(0, 0, 96))
    assert found is not None
    assert found[0] == (0, 40, 12, 60)
    assert found[1] == pytest.approx(1 - 64 / 200)
    corner = visible_box(diamond, Window(5, 0, 96))
    assert corner is not None
    assert corner[0] == (0, 43, 7, 57)  # the box of the visible tip, not the clipped box of the hull
    assert visible_box(diamond, Window(12, 0, 96)) is None


def test_slivers_are_not_placed() -> None:
    ship = Ship((0.0, 50.0), 0.0, 40.0, 8.0, 20.0, "cargo")
    assert well_cut(ship, [Window(0, 0, 96)])
    assert not well_cut(ship, [Window(15, 0, 96)])  # an eighth would show
    assert well_cut(ship, [Window(20, 0, 96)])  # nothing shows


def test_hulls_do_not_overlap_each_other_or_land() -> None:
    land = np.zeros((100, 100), bool)
    land[:, 60:] = True
    berths = Berths(land, [Window(0, 0, 100)])
    ship = Ship((30.0, 30.0), 0.3, 30.0, 6.0, 20.0, "cargo")
    assert berths.place(ship, clearance=1.0)
    assert not berths.place(Ship((32.0, 33.0), 1.5, 20.0, 4.0, 20.0, "cargo"), clearance=1.0)
    assert not berths.place(Ship((55.0, 70.0), 0.0, 30.0, 6.0, 20.0, "cargo"), clearance=1.0)
    assert berths.ships == [ship]


def test_ships_stand_out_in_their_boxes(small: Path) -> None:
    """Most boxes are brighter than the median of their image: boxes and pixels belong together."""
    coco = COCO(str(small / "annotations.json"))
    brighter = []
    for annotation in coco.loadAnns(coco.getAnnIds()):
        pixels = read_image(small / "images" / coco.imgs[annotation["image_id"]]["file_name"]).astype(float)
        x, y, w, h = annotation["bbox"]
        brighter.append(pixels[y : y + h, x : x + w].mean() > 1.5 * np.median(pixels))
    assert np.mean(brighter) > 0.9


def test_scenes_are_the_same_however_many_are_simulated_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    for least in (1, 1000):
        monkeypatch.setattr("boxtwin.datasets.simulated_sar.scenes.PARALLEL_FROM", least)
        folder = build(tmp_path / str(least), images=7, image_size=96, chips_per_scene=2, seed=3)
        built.append({path.name: path.read_bytes() for path in folder.rglob("*.*")})
    assert len(built[0]) == 8
    assert built[0] == built[1]
