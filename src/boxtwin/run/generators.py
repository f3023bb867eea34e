"""Build generators, what labels their variations, and what changes simulated images, from a configuration."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from hydra.errors import InstantiationException

from boxtwin.config import identity
from boxtwin.config.compose import no_setting_of_generator
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.datasets.simulated_sar import scenes as sar_scenes
from boxtwin.detector.options import Redraw
from boxtwin.errors import InputError
from boxtwin.files import check_name
from boxtwin.labels.method import LabelMethod, Variations
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Generator, Json, hash_of
from boxtwin.synthesis.manifest import fingerprint
from boxtwin.synthesis.redraw import Redrawing
from boxtwin.synthesis.sensor import FIT_VERSION, is_enlarged
from boxtwin.synthesis.setting_types import check_types, settings_of


def check_generators(config: BoxtwinConfig) -> None:
    """Raise `InputError` if settings of a generator that a run uses are wrong. No data set is read."""
    if identity.uses_generator(config):
        generator = _checked_generator(json.dumps(config.generator, sort_keys=True))
        labels = config.labels
        if labels.file is None and not labels.more:  # a file is read, and a way of one's own made, with the data set
            make_labels(config, Dataset("none", (), (), (), ""), generator)
    if config.pretraining.name != identity.NO_PRETRAINING and config.pretraining.redraw is Redraw.diffusion:
        _checked_generator(json.dumps(_redrawing_settings(config), sort_keys=True), "pretraining.model")


@functools.cache  # runs of a sweep share them, and a generator may read files
def _checked_generator(settings: str, place: str = "generator") -> Generator:
    return _generator_from(json.loads(settings), place)


def make_labels(config: BoxtwinConfig, dataset: Dataset, generator: Generator) -> LabelMethod:
    """The labelling method of a configuration; raises `InputError` if it does not suit the generator."""
    method: type[LabelMethod] = hydra.utils.get_class(config.labels._target_)
    return method(config.labels, Variations(dataset, generator.name, generator.boxes))


def make_generator(config: BoxtwinConfig) -> Generator:
    """The generator of a configuration; raises `InputError` if its settings are wrong."""
    return _generator_from(config.generator)


def _generator_from(settings: Mapping[str, Any], place: str = "generator") -> Generator:
    """A generator from the settings below ``place``."""
    arguments = {key: value for key, value in settings.items() if key != "name"}
    arguments["_target_"] = identity.current_target(arguments["_target_"])
    former = identity.removed_settings_of(arguments["_target_"])
    if others := sorted(name for name in former.keys() & arguments.keys() if arguments[name] != former[name]):
        constants = ", ".join(f"generator.{name} (always {identity.as_yaml(former[name])})" for name in others)
        raise InputError(f"no settings any more: {constants}; leave them out")
    arguments = {key: value for key, value in arguments.items() if key not in former}
    try:
        kind = hydra.utils.get_object(arguments["_target_"])
    except (ImportError, ValueError) as error:
        raise InputError(f"generator._target_={arguments['_target_']} cannot be imported: {error}") from None
    if isinstance(kind, type):
        known = settings_of(kind)
        if known is not None and (unknown := [name for name in arguments if name not in (*known, "_target_")]):
            raise no_setting_of_generator(str(settings["name"]), unknown, known)
        check_types(kind, arguments, place)
    try:
        generator: Generator = hydra.utils.instantiate(arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):  # without Hydra's text around it
            raise error.__cause__ from None
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__))
        if missing := re.search(r"missing \d+ required .*arguments?: (.+)", str(error.__cause__)):
            raise InputError(
                f"generator={settings['name']} lacks {missing[1]}; its file in conf/generator must name them"
            ) from None
        if unexpected is None:
            raise
        known = tuple(key for key in arguments if key != unexpected[1])
        raise no_setting_of_generator(str(settings["name"]), [unexpected[1]], known) from None
    generator.name = str(settings["name"])  # two files of one class are two generators
    check_name(generator.name, "generator.name")
    return generator


def make_redrawing(config: BoxtwinConfig, training: Sequence[Sample]) -> Redrawing | None:
    """How the simulated images of a run's pre-training are changed; None if they are not."""
    options = config.pretraining
    if options.redraw is Redraw.none:
        return None
    build = options.dataset.build
    model: PixelDDPM | None = None
    assert build is not None, "`check_settings` lets simulated images alone be changed"
    if options.redraw is Redraw.diffusion:
        generator = _generator_from(_redrawing_settings(config), "pretraining.model")
        assert isinstance(generator, PixelDDPM)
        model = generator
    simulation: dict[str, Json] = {"version": sar_scenes.SIMULATION, **vars(build), "fit": fit_key(config, training)}
    return Redrawing(simulation, training, config.detector.image_size, model)


def _redrawing_settings(config: BoxtwinConfig) -> dict[str, Any]:
    """The settings of the diffusion model that changes simulated images."""
    strength = config.pretraining.redraw_strength
    return config.pretraining.model | {"strength": strength, "object_strength": strength}


def fit_key(config: BoxtwinConfig, training: Sequence[Sample]) -> str | None:
    """Twelve hexadecimal digits of what a simulation is fitted to; None if it is not."""
    if not config.pretraining.fit:
        return None
    images = [[sample.name, fingerprint(sample)] for sample in training]
    side = config.detector.image_size
    return hash_of([FIT_VERSION + is_enlarged(training, side), images, side])[:12]
