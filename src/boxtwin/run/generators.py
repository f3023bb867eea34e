"""Build generators, and what changes simulated images, from a configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import hydra
from hydra.errors import InstantiationException

from boxtwin.config import identity
from boxtwin.config.compose import no_setting_of_generator
from boxtwin.config.schema import BoxtwinConfig
from boxtwin.datasets.sample import Sample
from boxtwin.datasets.simulated_sar import scenes as sar_scenes
from boxtwin.detector.options import Redraw
from boxtwin.errors import InputError
from boxtwin.files import check_name
from boxtwin.synthesis.ddpm.whole_image import PixelDDPM
from boxtwin.synthesis.generator import Generator, Json, hash_of
from boxtwin.synthesis.manifest import fingerprint
from boxtwin.synthesis.redraw import Redrawing
from boxtwin.synthesis.sensor import FIT_VERSION


def make_generator(config: BoxtwinConfig) -> Generator:
    """The generator of a configuration; raises `InputError` if its settings are wrong."""
    arguments = {key: value for key, value in config.generator.items() if key != "name"}
    arguments["_target_"] = identity.current_target(arguments["_target_"])
    former = identity.removed_settings_of(arguments["_target_"])
    if others := sorted(name for name in former.keys() & arguments.keys() if arguments[name] != former[name]):
        constants = ", ".join(f"generator.{name} (always {identity.as_yaml(former[name])})" for name in others)
        raise InputError(f"no settings any more: {constants}; leave them out")
    arguments = {key: value for key, value in arguments.items() if key not in former}
    try:
        generator: Generator = hydra.utils.instantiate(arguments, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):  # without Hydra's text around it
            raise error.__cause__ from None
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__))
        if unexpected is None:
            raise
        known = [key for key in arguments if key != unexpected[1]]
        raise no_setting_of_generator(str(config.generator["name"]), unexpected[1], known) from None
    generator.name = str(config.generator["name"])  # two files of one class are two generators
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
        strength = options.redraw_strength
        settings = options.model | {"strength": strength, "object_strength": strength}
        generator = make_generator(replace(config, generator=settings))
        assert isinstance(generator, PixelDDPM)
        model = generator
    simulation: dict[str, Json] = {"version": sar_scenes.SIMULATION, **vars(build), "fit": fit_key(config, training)}
    return Redrawing(simulation, training, config.detector.image_size, model)


def fit_key(config: BoxtwinConfig, training: Sequence[Sample]) -> str | None:
    """Twelve hexadecimal digits of what a simulation is fitted to; None if it is not."""
    if not config.pretraining.fit:
        return None
    images = [[sample.name, fingerprint(sample)] for sample in training]
    return hash_of([FIT_VERSION, images, config.detector.image_size])[:12]
