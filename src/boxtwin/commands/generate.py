"""Making the variations of a split: what they cost is said first, what was made and what was not at the end."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from boxtwin.command_line import command_line, quoted, setting, words_of
from boxtwin.config.compose import require_values, to_object
from boxtwin.config.launch import typed
from boxtwin.config.schema import BoxtwinConfig, GenerateConfig
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.evaluation import overlays
from boxtwin.quality.advice import describe
from boxtwin.quality.card import QualityCard, write_quality_card
from boxtwin.run import label_detectors
from boxtwin.run.build import Prepared, load_dataset, make_generator, prepare
from boxtwin.synthesis.generator import Generator
from boxtwin.synthesis.identity import StoreIdentity, read_identity, recorded_parameters, settings_from
from boxtwin.synthesis.regenerate import reproduce
from boxtwin.synthesis.store import Library, StoreUpdate
from boxtwin.synthesis.usage import check_usable

log = logging.getLogger(__name__)

SHEET_SOURCES, SHEET_VARIATIONS = 8, 3  # of a contact sheet
# Settings of generate.py itself, and one of train.py: what a suggested command leaves out.
_NOT_SUGGESTED = ("confirm", "budget", "regenerate", "rerun")
_CHOSEN_ANYWAY = ("--config-name=config", "--config-name=generate")
_NAMED = 5  # variations that a message names


def generate(composed: DictConfig) -> None:
    """Make the variations of a split, or, with ``regenerate``, make those of a store again and compare.

    Raises:
        InputError: something is wrong with the settings; calls are not confirmed or over the budget; at the end there
            are variations that could not be had, or that came out differently.
    """
    # One line for every HTTP request would tear the progress bar to pieces.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if composed.get("regenerate") is not None:
        _regenerate(composed)
        return
    config = to_object(composed, GenerateConfig)
    if not config.variations.per_image:
        raise InputError("variations=0 makes none; say how many of each image, such as variations=2")
    cell = prepare(config)
    library = _library_of(cell)
    _check_confirmed(cell, library, config)
    label_detectors.make_ready(cell)
    made = library.make(cell.sources, cell.per_image)
    sheet = contact_sheet(cell)
    label_detectors.write_label_card(cell)
    quality_card(cell)
    counts = [f"{made.made} variations made", f"{made.existing} were there already", f"{made.refused} refused"]
    if made.taken_over:
        counts.append(f"{made.taken_over} taken over from a store with the same pixels")
    if library.generator.remote or made.cost_usd:
        counts.append(f"cost {made.cost_usd:.2f} USD")
    log.info(
        "%s: %d of each of %d images\nlabels: %s\nlabel card: %s\nstore: %s%s",
        *(", ".join(counts), cell.per_image, len(cell.sources)),
        *(label_detectors.describe(cell), library.folder / "label_card.png", library.folder),
        f"\ncontact sheet: {sheet}" if sheet else "",
    )
    _check_usable(cell)
    _check_complete(cell, library)


def make(cell: Prepared) -> StoreUpdate:
    """Make what a run lacks, before it is trained. Generators that run elsewhere are not called.

    Raises:
        InputError: such a generator would have to be; the message has the command that does it.
    """
    library = _library_of(cell)
    generator = library.generator
    if generator.remote:
        refused = library.refused(cell.sources)
        missing = [request for request in library.missing(cell.sources, cell.per_image) if request.key not in refused]
        if missing:
            raise InputError(
                f"{len(missing)} variations of {generator.name} are missing, and training calls no generator that runs "
                f"elsewhere. Make them first:\n  {command(cell.config)}"
            )
    label_detectors.make_ready(cell)
    made = library.make(cell.sources, cell.per_image, use_generator=not generator.remote)
    label_detectors.write_label_card(cell)
    _check_usable(cell)
    if made.made:
        log.info(
            "%s: %d variations made in %.0f s (learning: %.0f s)",
            *(library.folder.name, made.made, made.fit_seconds + made.vary_seconds, made.fit_seconds),
        )
    return made


def contact_sheet(cell: Prepared) -> Path | None:
    """Sources beside their first variations, boxes drawn; in the store's folder. None if there are no variations."""
    library = _library_of(cell)
    sources = overlays.pick_examples(cell.split.train, SHEET_SOURCES)
    count = min(cell.per_image, SHEET_VARIATIONS)
    made: dict[str, list[Sample]] = defaultdict(list)
    for sample in library.variations(sources, count):
        assert sample.lineage is not None
        made[sample.lineage.source].append(sample)
    if not made:
        return None
    path = library.folder / "contact_sheet.png"
    overlays.contact_sheet(sources, [made[source.name] for source in sources], path, cell.dataset.classes, zoom=True)
    return path


def quality_card(cell: Prepared) -> QualityCard | None:
    """The quality card of all variations that the run's store has of its split; None where there is none.

    None too with ``quality=false``. Written after the variations are there, and for people only: nothing that is made
    or trained follows from it.
    """
    if not cell.config.quality:
        return None
    library = _library_of(cell)
    variations = library.all_variations(cell.sources)
    if not variations:
        return None
    speckle = cell.config.dataset.speckle
    card = write_quality_card(
        library.folder,
        variations,
        *(cell.split.train, cell.split.val, cell.split.test),
        speckle=speckle.value if speckle else None,
    )
    log.info("quality card: %s\n%s", describe(card.summary), library.folder / card.picture.name)
    return card


def command(config: BoxtwinConfig, *more: str) -> str:
    """The generate.py command that makes the variations of the configuration at hand."""
    given = [
        word
        for word in words_of(typed())
        if word.lstrip("+").split("=")[0] not in _NOT_SUGGESTED and word not in _CHOSEN_ANYWAY
    ]
    if not any(re.match(r"\+*variations(\.per_image)?=", word) for word in given):
        given.append(setting("variations", config.variations.per_image))
    if any(word.startswith("--config-name=") for word in given):  # its file may not know generate.py's own settings
        more = tuple(f"++{word}" for word in more)
    return command_line("generate.py", [*given, *more])


def _library_of(cell: Prepared) -> Library:
    assert cell.library is not None, "a run without variations has no library"
    return cell.library


def _check_confirmed(cell: Prepared, library: Library, config: GenerateConfig) -> None:
    """Say what calls will be made and what they cost; go on only if the user has said so."""
    generator = library.generator
    missing = library.missing(cell.sources, cell.per_image)
    # Rounded, so that twenty times 0.02 is within a budget of 0.4.
    cost = round(math.fsum(generator.price_usd(request.source) for request in missing), 6)
    if not missing or not (generator.remote or cost):
        return
    total = cell.per_image * len(cell.sources)
    bill = f"{len(missing)} of {total} variations are missing; {generator.name} makes them for about {cost:.2f} USD"
    more = ("confirm=true",) if config.budget is None else (f"budget={config.budget:g}", "confirm=true")
    if config.budget is not None and cost > config.budget:
        raise InputError(
            f"{bill}, which is over budget={config.budget:g}; nothing was made. Allow more, or ask for less:\n"
            f"  {command(config, f'budget={math.ceil(cost * 100) / 100:.2f}', 'confirm=true')}"
        )
    if not config.confirm:
        raise InputError(f"{bill}; nothing was made. To go on:\n  {command(config, *more)}")
    log.info("%s", bill)


def _check_usable(cell: Prepared) -> None:
    library = _library_of(cell)
    check_usable(
        str(library.folder),
        library.judged(cell.sources, cell.per_image),
        [line for line in library.refused(cell.sources).values() if line.variation <= cell.per_image],
        wanted=len(cell.sources) * cell.per_image,
        training={sample.name for sample in cell.split.train},
        repeats=library.generator.copies,
    )


def _check_complete(cell: Prepared, library: Library) -> None:
    missing, refused = library.missing(cell.sources, cell.per_image), library.refused(cell.sources)
    if not missing:
        return
    lines = [
        f"{request.source.name} v{request.variation:02d}: "
        + (refused[request.key].reason if request.key in refused else "not made")
        for request in missing[:_NAMED]
    ]
    if len(missing) > _NAMED:
        lines.append(f"… and {len(missing) - _NAMED} more; all are in {library.folder / 'refused.jsonl'}")
    raise InputError(
        f"{len(missing)} of {cell.per_image * len(cell.sources)} variations are missing; the same command asks for "
        "them again, and training does without them:\n  " + "\n  ".join(lines)
    )


def _regenerate(composed: DictConfig) -> None:
    """Make every image of a store again and compare."""
    store = Path(composed.regenerate).parent
    identity = read_identity(store)
    require_values(composed, "dataset.")
    config = to_object(_with_generator_of(composed, identity), GenerateConfig)
    dataset = load_dataset(config)
    generator = _generator_of(config, identity, dataset.samples)
    generator.match(dataset.samples)
    result = reproduce(store, generator, dataset)
    log.info(
        "%s: %d equal, %d restored, %d different", store, result.equal, len(result.restored), len(result.different)
    )
    if result.different:
        named = "\n  ".join(result.different[:_NAMED])
        raise InputError(
            f"{len(result.different)} images of {store} come out differently here, and were left as they are. The same "
            f"bytes are to be had on the same kind of machine with the same versions of packages only:\n  {named}"
        )


def _with_generator_of(composed: DictConfig, identity: StoreIdentity) -> DictConfig:
    """The configuration with the generator that made a store: its file in conf/generator, and what the store records.

    What is no parameter, such as the device or a folder's path, comes from the command line.
    """
    name = identity.generator
    composed = composed.copy()
    with open_dict(composed):
        if composed.generator.name != name:
            composed.generator = _option(name)
        option: Any = OmegaConf.to_container(composed.generator, resolve=True)
        composed.generator.update(settings_from(identity.parameters, option))
    missing = sorted(OmegaConf.missing_keys(composed.generator))
    if missing:
        raise InputError(f"say generator={name} and generator.{missing[0]}=… as when the store was made")
    return composed


def _generator_of(config: BoxtwinConfig, identity: StoreIdentity, training: Sequence[Sample]) -> Generator:
    """The generator that made a store.

    Raises:
        InputError: it would not make the same images here.
    """
    name, recorded = identity.generator, identity.parameters
    generator = make_generator(config)
    if generator.remote:
        raise InputError(
            f"{name} runs elsewhere and gives another image every time, so that there is nothing to compare. Images "
            "lost from its store are brought back by generate.py without regenerate, from answers that were kept"
        )
    now = json.loads(json.dumps(recorded_parameters(generator, training)))
    made, here = identity.version, generator.version(training)
    if made != here:
        raise InputError(f"the store was made by version {made} of {name}, here is version {here}")
    unlike = sorted(key for key in {*now, *recorded} if now.get(key) != recorded.get(key))
    if unlike:
        raise InputError(
            f"generator={name} as it is here differs from the one that made the store in {', '.join(unlike)}; say "
            + " ".join(quoted(setting(f"generator.{key}", recorded.get(key))) for key in unlike)
        )
    return generator


def _option(name: str) -> DictConfig:
    """A generator's file in conf/generator, or in a folder given with --config-dir."""
    loader = GlobalHydra.instance().config_loader()
    if name not in loader.get_group_options("generator"):
        raise InputError(f"the store was made by generator {name}, for which there is no conf/generator/{name}.yaml")
    # Within the whole, since a generator's file may choose the labels that suit it.
    generator: DictConfig = loader.load_configuration("config", [f"generator={name}"], RunMode.RUN).generator
    return generator
