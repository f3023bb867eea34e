"""Make the variations of a split, after reporting their cost; or make those of a store again and compare."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from boxtwin.command_line import command_line, quoted, setting, words_of
from boxtwin.commands.generate_dry_run import describe_dry_run
from boxtwin.commands.generate_preview import draw_preview, preview_sources, preview_store
from boxtwin.config.compose import require_values, to_object
from boxtwin.config.launch import typed_words
from boxtwin.config.schema import BoxtwinConfig, GenerateConfig
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.evaluation import overlays
from boxtwin.quality.card import QualityCard, write_quality_card
from boxtwin.quality.record import describe
from boxtwin.run import label_detectors
from boxtwin.run.build import Prepared, load_dataset, prepare
from boxtwin.run.generators import make_generator
from boxtwin.run.unlabelled import prepare_generator
from boxtwin.synthesis.generator import Generator
from boxtwin.synthesis.identity import StoreIdentity, local_places, read_identity, recorded_parameters, settings_from
from boxtwin.synthesis.manifest import check_usable
from boxtwin.synthesis.regenerate import reproduce
from boxtwin.synthesis.store import Library, StoreUpdate

log = logging.getLogger(__name__)

SHEET_SOURCES, SHEET_VARIATIONS = 8, 3  # of a contact sheet
# Settings and options that a suggested command leaves out.
_NOT_SUGGESTED = re.compile(r"\+*(confirm|budget|regenerate|rerun|dry_run|preview)=|--config-name=(config|generate)$")
_NAMED = 5  # variations that a message names


def generate(composed: DictConfig) -> None:
    """Make the variations of a split, or, with ``regenerate``, make those of a store again and compare.

    Raises `InputError` if calls are not confirmed or over the budget, and if variations are missing or differ.
    """
    if composed.get("regenerate") is not None:
        _regenerate(composed)
        return
    config = to_object(composed, GenerateConfig)
    if not config.variations.per_image:
        raise InputError("variations=0 makes none; say how many of each image, such as variations=2")
    prepared = prepare(config)
    library = prepared.store
    if config.dry_run:
        log.info("%s\nto make them:\n  %s", describe_dry_run(prepared), generate_command(config))
        return
    if config.preview:
        _preview(prepared, config)
        return
    _check_confirmed(library, config, prepared.sources, prepared.per_image)
    label_detectors.prepare_labelling(prepared)
    prepare_generator(prepared)
    update = library.make(prepared.sources, prepared.per_image)
    sheet = contact_sheet(prepared)
    label_detectors.write_label_card(prepared)
    quality_card(prepared)
    counts = [f"{update.made} variations made", f"{update.existing} were there already", f"{update.refused} refused"]
    if update.reused:
        counts.append(f"{update.reused} reused from a store with the same pixels")
    if library.generator.remote or update.cost_usd:
        counts.append(f"cost {update.cost_usd:.2f} USD")
    lines = [
        f"{', '.join(counts)}: {prepared.per_image} of each of {len(prepared.sources)} images",
        f"labels: {label_detectors.describe(prepared)}",
        f"label card: {library.folder / 'label_card.png'}",
        *_measured(update),
        f"store: {library.folder}",
        *([f"contact sheet: {sheet}"] if sheet else []),
    ]
    log.info("\n".join(lines))
    _check_usable(prepared)
    if missing := library.missing(prepared.sources, prepared.per_image):
        refused = library.refused(prepared.sources)
        lines = [
            f"{request.source.name} v{request.variation:02d}: "
            + (refused[request.key].reason if request.key in refused else "not made")
            for request in missing[:_NAMED]
        ]
        if len(missing) > _NAMED:
            lines.append(f"… and {len(missing) - _NAMED} more; all are in {library.folder / 'refused.jsonl'}")
        raise InputError(
            f"{len(missing)} of {prepared.wanted} variations are missing; the same command asks for them again, and "
            "training does without them:\n  " + "\n  ".join(lines)
        )


def _preview(prepared: Prepared, config: GenerateConfig) -> None:
    """Make the first variation of a few training images, and draw the sheet of all generators of the sweep."""
    library, sources = preview_store(prepared), preview_sources(prepared)
    _check_confirmed(library, config, sources, 1)
    prepare_generator(replace(prepared, library=library))
    update = library.make(sources, 1)
    made = f"{library.folder}: {update.made} made for the preview"
    log.info("%s", "; ".join([made, *_measured(update), f"sheet: {draw_preview(prepared, library)}"]))


def _measured(update: StoreUpdate) -> list[str]:
    if not update.made:
        return []
    part, size = update.peak_memory
    return [f"{update.vary_seconds / update.made:.1f} s an image", f"peak memory: {size / 1e9:.2f} GB of the {part}"]


def make_variations(prepared: Prepared) -> StoreUpdate:
    """Make missing variations before training; raises `InputError` if that takes calls of a remote generator."""
    library = prepared.store
    generator, refused = library.generator, library.refused(prepared.sources)
    missing = [each for each in library.missing(prepared.sources, prepared.per_image) if each.key not in refused]
    if generator.remote and missing:
        raise InputError(
            f"{len(missing)} variations of {generator.name} are missing, and training calls no generator that runs "
            f"elsewhere. Make them first:\n  {generate_command(prepared.config)}"
        )
    label_detectors.prepare_labelling(prepared)
    prepare_generator(prepared)
    update = library.make(prepared.sources, prepared.per_image, use_generator=not generator.remote)
    label_detectors.write_label_card(prepared)
    _check_usable(prepared)
    if update.made:
        seconds = f"{update.fit_seconds + update.vary_seconds:.0f} s (learning or loading: {update.fit_seconds:.0f} s)"
        log.info("%s: %d variations made in %s", library.folder.name, update.made, seconds)
    return update


def sheet_of(prepared: Prepared) -> Path:
    """The contact sheet of a run's store."""
    return prepared.store.folder / "contact_sheet.png"


def contact_sheet(prepared: Prepared) -> Path | None:
    """Draw sources beside their first variations, with boxes, into the store's folder. None if it has no variations.

    Images whose labels were refused are shown too, with the reason.
    """
    library, sources = prepared.store, overlays.pick_examples(prepared.split.train, SHEET_SOURCES)
    by_name = {source.name: source for source in sources}
    lines = library.judged(sources, min(prepared.per_image, SHEET_VARIATIONS))
    made: dict[str, list[Sample]] = {source.name: [] for source in sources}
    titles: dict[str, list[str]] = {source.name: [] for source in sources}
    for line in sorted(lines, key=lambda line: line.variation):
        made[line.source].append(library.sample_of(by_name[line.source], line, line.variation))
        reason = (line.labels.refused or "").partition(":")[0]
        used = f", not used: {reason}" if reason else f" {line.generator}"
        titles[line.source].append(f"v{line.variation:02d}{used}")
    if not any(made.values()):
        return None
    path = sheet_of(prepared)
    overlays.contact_sheet(sources, list(made.values()), path, prepared.dataset.classes, titles=list(titles.values()))
    return path


def quality_card(prepared: Prepared) -> QualityCard | None:
    """Write the quality card of all variations of the split in the run's store. Nothing is computed from it.

    None without variations, or with ``quality=false``.
    """
    variations = prepared.store.all_variations(prepared.sources) if prepared.config.quality else ()
    if not variations:
        return None
    folder, split, speckle = prepared.store.folder, prepared.split, prepared.config.dataset.speckle
    card = write_quality_card(folder, variations, split.train, split.val, split.test, speckle=speckle)
    log.info("quality card: %s\n%s", describe(card.summary), folder / card.picture.name)
    return card


def generate_command(config: BoxtwinConfig, *more: str) -> str:
    """The generate.py command that makes the variations of the configuration."""
    words, number = [word for word in words_of(typed_words()) if not _NOT_SUGGESTED.match(word)], config.variations
    # The variations may be those of a pre-training, which has numbers of its own.
    words = [re.sub(r"^(\+*variations(\.per_image)?=)\d+$", rf"\g<1>{number.per_image}", word) for word in words]
    if not any(re.match(r"\+*variations(\.per_image)?=", word) for word in words):
        words.append(setting("variations", number.per_image))
    if not number.validation and "variations.validation=false" not in words:
        words.append(setting("variations.validation", value=False))
    if any(word.startswith("--config-name=") for word in words):  # it may lack generate.py's own settings
        more = tuple(f"++{word}" for word in more)
    return command_line("generate.py", [*words, *more])


def _check_confirmed(library: Library, config: GenerateConfig, sources: Sequence[Sample], per_image: int) -> None:
    """Report calls of remote or paid generators, and refuse them if the user has not confirmed them."""
    generator = library.generator
    missing = library.missing(sources, per_image)
    # Rounded, so that twenty times 0.02 is within a budget of 0.4.
    cost = round(math.fsum(generator.price_usd(request.source) for request in missing), 6)
    if not missing or not (generator.remote or cost):
        return
    count = f"{len(missing)} of {len(sources) * per_image} variations are missing"
    bill = f"{count}; {generator.name} makes them for about {cost:.2f} USD"
    more = ("confirm=true",) if config.budget is None else (f"budget={config.budget:g}", "confirm=true")
    if config.budget is not None and cost > config.budget:
        raise InputError(
            f"{bill}, which is over budget={config.budget:g}; nothing was made. Allow more, or ask for less:\n"
            f"  {generate_command(config, f'budget={math.ceil(cost * 100) / 100:.2f}', 'confirm=true')}"
        )
    if not config.confirm:
        raise InputError(f"{bill}; nothing was made. To go on:\n  {generate_command(config, *more)}")
    if config.budget is not None:
        generator.limit_costs(config.budget)
    log.info("%s", bill)


def _check_usable(prepared: Prepared) -> None:
    library = prepared.store
    check_usable(
        str(library.folder),
        library.judged(prepared.sources, prepared.per_image),
        [line for line in library.refused(prepared.sources).values() if line.variation <= prepared.per_image],
        wanted=prepared.wanted,
        training={sample.name: len(sample.object_boxes) for sample in prepared.split.train},
        repeats=library.generator.copies,
    )


def _regenerate(composed: DictConfig) -> None:
    """Make every image of a store again and compare."""
    given = Path(composed.regenerate)
    store = given if given.is_dir() else given.parent  # the manifest of a store, or its folder
    identity = read_identity(store)
    require_values(composed, "dataset.")
    if (name := composed.dataset.name) != identity.dataset:
        cure = (
            f"give its settings as they were, such as dataset=coco dataset.name={identity.dataset} dataset.root=FOLDER"
        )
        raise InputError(f"the store was made of data set {identity.dataset}, and this command has {name}: {cure}")
    config = to_object(_with_generator_of(composed, identity), GenerateConfig)
    dataset = load_dataset(config)
    by_name = {sample.name: sample for sample in dataset.samples}
    learnt = [by_name[name] for name, _ in identity.training if name in by_name]
    generator = _generator_of(config, identity, learnt or dataset.samples)
    generator.match(dataset.samples)
    result = reproduce(store, generator, dataset)
    restored, different = len(result.restored), len(result.different)
    log.info("%s: %d equal, %d restored, %d different", store, result.equal, restored, different)
    if different:
        names = "\n  ".join(result.different[:_NAMED])
        first = f" (the first {_NAMED})" if different > _NAMED else ""
        raise InputError(
            f"{different} images of {store} come out differently here, and were left unchanged. Equal bytes need the "
            "same kind of machine, package versions and number of threads (OMP_NUM_THREADS). Images that differ"
            f"{first}:\n  {names}"
        )


def _with_generator_of(composed: DictConfig, identity: StoreIdentity) -> DictConfig:
    """The configuration with the generator that made a store: its file in conf/generator, and what the store records.

    The rest, such as the device or a folder's path, comes from the command line.
    """
    name = identity.generator
    composed = composed.copy()
    with open_dict(composed):
        if composed.generator.name != name:
            loader = GlobalHydra.instance().config_loader()
            if name not in loader.get_group_options("generator"):
                raise InputError(
                    f"the store was made by generator {name}, for which there is no conf/generator/{name}.yaml"
                )
            # Within the whole, since a generator's file may choose the labels that suit it.
            composed.generator = loader.load_configuration("config", [f"generator={name}"], RunMode.RUN).generator
        option: Any = OmegaConf.to_container(composed.generator, resolve=True)
        for key, value in settings_from(identity.parameters, option).items():
            OmegaConf.update(composed.generator, key, value)
    missing = sorted(OmegaConf.missing_keys(composed.generator))
    if missing:
        raise InputError(f"say generator={name} and generator.{missing[0]}=… as when the store was made")
    return composed


def _generator_of(config: BoxtwinConfig, identity: StoreIdentity, training: Sequence[Sample]) -> Generator:
    """The generator that made a store; raises `InputError` if it would make other images here."""
    name, recorded = identity.generator, identity.parameters
    generator = make_generator(config)
    if generator.remote:
        raise InputError(
            f"{name} runs elsewhere and gives another image every time, so that there is nothing to compare. Images "
            "lost from its store are brought back by generate.py without regenerate, from answers that were kept"
        )
    current = json.loads(json.dumps(recorded_parameters(generator, training)))
    current |= {key: value for key, value in generator.former_parameters().items() if recorded.get(key) == value}
    if identity.version != (version := generator.version(training)):
        raise InputError(f"the store was made by version {identity.version} of {name}, here is version {version}")
    differing = sorted(key for key in {*current, *recorded} if current.get(key) != recorded.get(key))
    if differing:
        local = local_places(recorded)
        words = [quoted(setting(f"generator.{key}", recorded.get(key))) for key in differing if key not in local]
        places = {local[key] for key in differing if key in local}
        words += [f"generator.{place}=PLACE, where {called} lies as it was" for place, called in sorted(places)]
        raise InputError(
            f"generator={name} as it is here differs from the one that made the store in {', '.join(differing)}; say "
            f"generator={name} {' '.join(words)}"
        )
    return generator
