"""Name the conditions of a table: split and generator of each, and the settings in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from boxtwin.studies.condition_values import (
    COUNT,
    DEVICE,
    EXTRA,
    IN_WORDS,
    NAMES,
    OF_TRAINING_IMAGES,
    Values,
    as_overrides,
    differences,
    in_words,
    is_hash_of_data,
    part,
    part_of,
    places_of,
)
from boxtwin.studies.runs import NO_GENERATOR, StudyRun

REAL_IMAGES = " real images"  # behind their number


def prefix_of(setup: Values) -> str:
    """A kind of device and settings before the name of a condition, the commonest in words; empty without any."""
    words = [in_words(key, setup[key]) for key in IN_WORDS if key in setup]
    settings = as_overrides({key: value for key, value in setup.items() if key not in (*IN_WORDS, DEVICE)})
    return "".join(f"{each}, " for each in (setup.get(DEVICE), *words, settings) if each)


def condition_name(split: str, variations: int | None, generator: str) -> str:
    """``s1 x10 pixel_ddpm`` or ``s1 x0``; ``s1 pixel_ddpm`` without a number, for all numbers of variations."""
    number = [] if variations is None else [f"x{variations}"]
    return " ".join([split, *number, *([] if variations == 0 else [generator])])


def names_of(values: Sequence[Values], runs: Sequence[StudyRun]) -> list[tuple[str, str]]:
    """Split and generator of each condition as a table names them: uniquely within a setup."""
    splits = _split_names(values, runs)
    generators = [run.generator if run.variations else NO_GENERATOR for run in runs]
    for places in places_of([(run.dataset, run.generator) if run.variations else None for run in runs]):
        apart = differences([part(values[place], "variations") for place in places], (*NAMES, "store"))
        for place, each in zip(places, apart, strict=True):
            generators[place] = f"{generators[place]} {as_overrides(each)}".rstrip()
    # Stores differ from split to split; within one, other labels or other pixels under the same settings.
    setups = [tuple(sorted(part(each, "setup").items())) for each in values]
    for places in places_of(list(zip(splits, generators, setups, strict=True))):
        stores = [values[place].get("store", "").rpartition("-")[2] for place in places]
        if len(set(stores) - {"null"}) > 1:
            # Versions of labels that people made go by the names of their files.
            files = [runs[place].label_file for place in places]
            has_names = len({*files} - {""}) == len(places)
            for place, file, store in zip(places, files, stores, strict=True):
                generators[place] += f" labels.file={file}" if has_names else f" store={store}"
    return list(zip(splits, generators, strict=True))


def _split_names(values: Sequence[Values], runs: Sequence[StudyRun]) -> list[str]:
    """The split of each condition, with what tells it from others of its name and data set.

    That is the number of real images, then the names of annotations and folder, then other settings; a hash only where
    nothing else tells two conditions apart.
    """
    names = [run.split for run in runs]
    for places in places_of([(run.dataset, run.split) for run in runs]):
        apart = differences([part(values[place], "split") for place in places], NAMES)
        follow = [{k: v for k, v in each.items() if k in OF_TRAINING_IMAGES} for each in apart]
        settings = [{k: v for k, v in each.items() if k not in OF_TRAINING_IMAGES} for each in apart]
        sizes = [runs[place].metrics.get("data/real_images", math.nan) for place in places]
        of_data = [runs[place].names_of_data for place in places]
        told: list[tuple[str, ...]] = [()] * len(places)
        for way in (
            [f"({size:g}{REAL_IMAGES})" if math.isfinite(size) else "" for size in sizes],
            *([as_overrides(each) for each in one] for one in (of_data, settings, follow)),
        ):
            for alike in places_of(told):
                found = {(as_overrides(apart[at]), way[at]) for at in alike}
                follows = len({condition for condition, _ in found}) == len(found)
                if follows and len({words for _, words in found}) > 1:
                    for at in alike:
                        told[at] = (*told[at], way[at])
        for place, words in zip(places, told, strict=True):
            names[place] = " ".join(filter(None, (names[place], *words)))
    return names


def varied_values(values: Sequence[Values], runs: Sequence[StudyRun]) -> list[dict[str, str]]:
    """The settings in which conditions differ, in the shortest words that tell as much; ``runs`` are one of each."""
    return _with_numbers_of_images(_with_names_of_data(_varied_settings(values), values, runs))


def _varied_settings(values: Sequence[Values]) -> list[dict[str, str]]:
    """The settings in which conditions differ; those of variations among conditions with variations alone."""
    varied = differences([{k: v for k, v in each.items() if part_of(k) != "variations"} for each in values], NAMES)
    mixed = [place for place, each in enumerate(values) if each.get(COUNT) != "0"]
    ways = differences([part(values[place], "variations") for place in mixed], (*NAMES, "store"))
    for place, way in zip(mixed, ways, strict=True):
        varied[place] |= way
    return varied


def _with_names_of_data(
    varied: Sequence[Values], values: Sequence[Values], runs: Sequence[StudyRun]
) -> list[dict[str, str]]:
    """Settings that differ, with names of annotations and folders for hashes of data, where these tell as much."""
    named = [dict(each) for each in varied]
    for places in places_of([run.dataset for run in runs]):
        keys = {key for place in places for key in part(varied[place], "setup") if is_hash_of_data(key)}
        hashes = [tuple(values[place].get(key) for key in sorted(keys)) for place in places]
        names = differences([runs[place].names_of_data for place in places])
        texts = [as_overrides(each) for each in names]
        if keys and len({*hashes}) == len({*texts}) == len({*zip(hashes, texts, strict=True)}):
            for place, each in zip(places, names, strict=True):
                named[place] = {key: value for key, value in named[place].items() if key not in keys} | each
    return named


def _with_numbers_of_images(varied: Sequence[Values]) -> list[dict[str, str]]:
    """Settings that differ, without the hashes of images beside the data set where their numbers tell as much."""
    named = [dict(each) for each in varied]
    for key in EXTRA:
        numbers = {each[key]: each[key].partition("-")[0] for each in varied if key in each}
        if len(set(numbers.values())) == len(numbers):
            for each in named:
                each |= {key: numbers[each[key]]} if key in each else {}
    return named
