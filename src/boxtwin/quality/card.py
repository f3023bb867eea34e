"""The quality card of a store of variations: do they look real, are they new, do they show test images?

The card is a report and nothing else. It is the only place where variations and test images meet: it is written after
the variations are made, no generator, label rule, training or choice of a checkpoint reads it, and nothing is left out
because of it. A person does that, by choosing another generator.

Each measurement stands beside the same one for real images and has a verdict. *undecided* stands where there are too
few images, or nothing to measure.

grey_levels: Wasserstein distance of the variations' grey levels from those of their sources, in standard deviations of
    these. *alike*: no farther than halves of the real images are from each other 19 times of 20
    (`reference_of_halves`), where less than 0.02 always counts as alike and more than 0.1 never does.
looks: ratio of the equivalent numbers of looks on calm sea, variations to sources (geometric means over images), for
    radar images alone. *alike*: no farther from 1 than the halves' ratio, where 5% always counts as alike and 25% never
    does: variations show the scenes of their sources, so a difference of scenes, as between halves, excuses no more.
fine_detail: ratio of the power in the top octave of the spectrum, in the same way.
nearest_real: median layout distance to the nearest training or validation image. *copy*: more than one variation in 20
    repeats over half of a real image's grain, and more of them than of the real images do; *alike*: the median is below
    what all but one in 20 real images keep from each other, so these are the same scenes again; else *unlike*.
siblings: the same to the other variations of the source. *copy*: more than one in 20 repeats its predecessor.
test: median layout distance to the nearest test image. *leak*: a variation repeats more of a test image's grain than
    its source does (overlapping chips on two sides of a split are no fault of the generator); or the variations are
    nearer to test images than the real ones are, by more than chance gives once in a hundred times
    (`nearer_than_chance`; each source counts once, with the median of its variations, which are not independent).

The verdict of the card is the worst of them: leak, copy, unlike, alike; *unlike* is no fault in a distance.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from boxtwin.datasets.options import Speckle
from boxtwin.datasets.sample import Sample
from boxtwin.files import exclusive_lock, link_file, write_bytes_atomically
from boxtwin.quality.measure import Evidence, Measured, gather
from boxtwin.quality.record import COPY, MEASURED, Metric, QualityReport, Verdict, advice
from boxtwin.quality.similarity import nearer_than_chance
from boxtwin.quality.texture import fine_energy, log_ratio, pooled, reference_of_halves, wasserstein

FORMAT = 3  # of the card, and of how its measurements are computed
DEEP_FORMAT = 2  # added to it: of the measurements of 16 bit images
PAIRS = 5  # what the picture has room for
NAME, CARDS = "quality_card", "quality_cards"
ALWAYS, NEVER = math.log(1.05), math.log(1.25)  # differences of logarithms
ALWAYS_GREY, NEVER_GREY = 0.02, 0.1  # standard deviations
COPIES = 0.05  # the share of copies that chance might explain
WORST_FIRST: tuple[Verdict, ...] = ("leak", "copy", "unlike", "alike")
CHANCE = 0.01  # the probability below which nearness to test images is none


class QualityCard(NamedTuple):
    """A card and its two files."""

    summary: QualityReport
    report: Path
    picture: Path


def write_quality_card(
    folder: Path,
    variations: Sequence[Sample],
    training: Sequence[Sample],
    validation: Sequence[Sample],
    test: Sequence[Sample],
    *,
    speckle: Speckle | None,
) -> QualityCard:
    """Write ``quality_card.json`` and ``quality_card.png`` of a store; a progress bar shows how far it is.

    Splits may share a store, and runs of a sweep may want cards of either in turn. So each card is kept in
    ``quality_cards``, by a hash of the pixels that it was made of, and made only once; the files in the store's own
    folder are copies of the last one asked for. Other labels of the same pixels, in this store or one beside it, make
    no new card, though boxes are kept out of the calm sea: a measurement changes by little.

    Args:
        variations: all variations that are there and used; each names one of the real images as its source.
        training, validation: the real images that may have variations.
        test: real images that have none.
        speckle: what a radar's pixel values stand for; None for pictures that have no speckle.
    """
    if not variations:
        raise ValueError("a quality card needs at least one variation, got none")
    made_of = _fingerprint((variations, training, validation, test), speckle)
    kept = folder / CARDS / made_of[:12]
    report, picture = kept / f"{NAME}.json", kept / f"{NAME}.png"
    with exclusive_lock(folder / CARDS / ".lock", f"another process is writing a quality card of {folder}; waiting"):
        others = folder.parent.glob(f"*/{CARDS}/{made_of[:12]}/{NAME}.json")
        if not _is_whole(report) and (other := next(filter(_is_whole, others), None)) is not None:
            for file in (picture, report):
                link_file(other.with_name(file.name), file)
        if not _is_whole(report):
            # Imported here: most runs find their card and draw none.
            from boxtwin.quality.plot import draw

            evidence = gather(variations, training, validation, test, speckle)
            summary = summarise(evidence, made_of)
            draw(evidence, summary, picture, title=folder.name)
            # Last: where it stands, the picture does.
            write_bytes_atomically(report, json.dumps(summary, indent=1).encode())
        for file in (picture, report):
            copy = folder / file.name
            if not copy.exists() or copy.read_bytes() != file.read_bytes():
                write_bytes_atomically(copy, file.read_bytes())
    return QualityCard(json.loads(report.read_text()), report, picture)


def _is_whole(report: Path) -> bool:
    """Whether a card can be read and has its picture."""
    try:
        content = json.loads(report.read_text())
        return isinstance(content, dict) and "figures" in content and report.with_suffix(".png").stat().st_size > 0
    except (OSError, ValueError):
        return False


def metrics_of(report: QualityReport) -> dict[str, float]:
    """The few measurements of a card that are tracked with every run; nan where there is none."""
    metrics = report["figures"]
    values = {
        "quality_grey_distance": metrics["grey_levels"]["value"],
        "quality_enl_ratio": metrics["looks"]["value"],
        "quality_fine_detail_ratio": metrics["fine_detail"]["value"],
        "quality_real_distance": metrics["nearest_real"]["value"],
        "quality_copies": metrics["nearest_real"]["copies"],
        "quality_sibling_distance": metrics["siblings"]["value"],
        "quality_test_distance": metrics["test"]["value"],
        "quality_test_probability": metrics["test"]["probability"],
        "quality_test_matches": len(metrics["test"]["matches"]),
    }
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def summarise(evidence: Evidence, made_of: str = "") -> QualityReport:
    """The content of a card, rounded to 6 digits; None for what is not defined."""
    made, real = ([fine_energy(one.spectrum) for one in each] for each in (evidence.measured, evidence.real_measured))
    metrics = {
        "grey_levels": _grey_levels(evidence),
        "looks": _looks(evidence),
        "fine_detail": _ratio(evidence, made, real),
        "nearest_real": _nearest_real(evidence),
        "siblings": _siblings(evidence),
        "test": _test(evidence),
    }
    verdicts = {metrics[name]["verdict"] for name in MEASURED}
    verdicts |= {metrics[name]["verdict"] for name in ("nearest_real", "siblings", "test")} & {"leak", "copy"}
    verdict: Verdict = next((worst for worst in WORST_FIRST if worst in verdicts), "undecided")
    report: QualityReport = {
        "format": FORMAT,
        "made_of": made_of,
        "verdict": verdict,
        "images": {
            "variations": len(evidence.variations),
            "sources": len(evidence.distinct_sources),
            "real": len(evidence.real),
            "test": len(evidence.test),
        },
        "speckle": evidence.speckle and evidence.speckle.value,
        "advice": advice(metrics),
        "figures": metrics,
        "nearest_pairs": [
            {
                "variation": one.name,
                "source": source.name,
                "real": one.nearest,
                "test": one.nearest_test,
                "distance": one.distance,
                "test_distance": one.test_distance,
            }
            for source, one in _nearest_pairs(evidence)
        ],
    }
    rounded: QualityReport = json.loads(
        json.dumps(report), parse_float=lambda number: round(float(number), 6), parse_constant=lambda _: None
    )
    return rounded


def _nearest_pairs(evidence: Evidence) -> list[tuple[Sample, Measured]]:
    """The variations that come nearest to a test image, one of each source; those that repeat one come first."""
    pairs = zip(evidence.sources, evidence.measured, strict=True)
    chosen: dict[int, Measured] = {}
    for source, one in sorted(pairs, key=lambda pair: (-pair[1].repeats_test, pair[1].test_distance)):
        chosen.setdefault(source, one)
    return [(evidence.real[source], one) for source, one in chosen.items()][:PAIRS]


def _grey_levels(evidence: Evidence) -> Metric:
    real, groups = evidence.real_levels, [sample.group for sample in evidence.real]
    reference = reference_of_halves(real, groups, lambda *halves: wasserstein(*map(pooled, halves)))
    value = wasserstein(evidence.levels, pooled([real[source] for source in evidence.sources]))
    verdict = _alike(value, reference, always=ALWAYS_GREY, never=NEVER_GREY)
    return {"value": value, "reference": reference, "verdict": verdict}


def _looks(evidence: Evidence) -> Metric:
    made, real = ([math.log(one.looks) for one in each] for each in (evidence.measured, evidence.real_measured))
    return {
        **_ratio(evidence, made, real),
        "variations": math.exp(log_ratio(made, [0.0])),
        "real": math.exp(log_ratio([real[source] for source in evidence.sources], [0.0])),
        "images_with_calm_sea": sum(not math.isnan(value) for value in made),
    }


def _ratio(evidence: Evidence, made: Sequence[float], real: Sequence[float]) -> Metric:
    """Variations against their sources, from one logarithm per image; the reference is a factor, at least 1.

    ``typical`` is the median factor between a variation and its own source, at least 1: errors to either side, which
    cancel in the ratio of the means, do not cancel in it.
    """
    reference = reference_of_halves(real, [sample.group for sample in evidence.real], log_ratio)
    value = log_ratio(made, [real[source] for source in evidence.sources])
    pairs = [abs(variation - real[source]) for variation, source in zip(made, evidence.sources, strict=True)]
    defined = [pair for pair in pairs if not math.isnan(pair)]
    return {
        "value": math.exp(value),
        "reference": math.exp(reference),
        "typical": math.exp(float(np.median(defined))) if defined else math.nan,
        "verdict": _alike(value, reference, always=ALWAYS, never=NEVER),
    }


def _alike(value: float, reference: float, *, always: float, never: float) -> Verdict:
    if math.isnan(value) or math.isnan(reference):
        return "undecided"
    return "alike" if abs(value) <= min(max(reference, always), never) else "unlike"


def _nearest_real(evidence: Evidence) -> Metric:
    among_real = _share_of_copies([one.repeats for one in evidence.real_measured])
    distances = [one.distance for one in evidence.measured]
    repeats = [one.repeats for one in evidence.measured]
    return {**_distance(evidence, distances, repeats, max(COPIES, among_real)), "copies_among_real": among_real}


def _siblings(evidence: Evidence) -> Metric:
    compared = [one for one in evidence.measured if not math.isnan(one.sibling_distance)]
    if not compared:
        reference, limit = _between_real(evidence)
        missing: Metric = {"value": None, "reference": reference, "verdict": "undecided"}
        return {**missing, "same_scene_below": limit, "copies": None}
    # The first variation of each source has no predecessor.
    repeats = [one.repeats_sibling for one in compared if not math.isnan(one.repeats_sibling)]
    return _distance(evidence, [one.sibling_distance for one in compared], repeats, COPIES)


def _distance(evidence: Evidence, distances: list[float], repeats: list[float], most_copies: float) -> Metric:
    value, copies, (reference, limit) = float(np.median(distances)), _share_of_copies(repeats), _between_real(evidence)
    verdict: Verdict = "undecided" if math.isnan(limit) else "alike" if value < limit else "unlike"
    return {
        "value": value,
        "reference": reference,
        "same_scene_below": limit,
        "repeated_grain": float(np.median(repeats)),
        "copies": copies,
        "verdict": "copy" if copies > most_copies else verdict,
    }


def _between_real(evidence: Evidence) -> tuple[float, float]:
    """How far real images are from the nearest other one: the median, and what 19 of 20 exceed."""
    distances = [one.distance for one in evidence.real_measured]
    if len(distances) < 2:
        return math.nan, math.nan
    return float(np.median(distances)), float(np.quantile(distances, 0.05))


def _share_of_copies(repeats: Sequence[float]) -> float:
    return float(np.mean([share >= COPY for share in repeats]))


def _test(evidence: Evidence) -> Metric:
    distances = np.array([one.test_distance for one in evidence.measured])
    sources = np.array(evidence.sources)
    medians = np.array([np.median(distances[sources == source]) for source in evidence.distinct_sources])
    real = np.array([one.test_distance for one in evidence.real_measured])
    probability = nearer_than_chance(medians, real)
    repeated = [one for one in evidence.measured if one.repeats_test > 0]
    return {
        "value": float(np.median(distances)),
        "reference": float(np.median(real)),
        "probability": probability,
        "matches": [
            {"variation": one.name, "test": one.nearest_test, "repeated_grain": one.repeats_test} for one in repeated
        ],
        "matches_among_real": sum(one.repeats_test > 0 for one in evidence.real_measured),
        "verdict": "leak" if repeated or probability < CHANCE else "unlike",
    }


def _fingerprint(sides: Sequence[Sequence[Sample]], speckle: Speckle | None) -> str:
    """Hash of the pixels, not of the labels; variations go by their source, whichever store they are in."""
    deep = any(sample.bits > 8 for samples in sides for sample in samples)
    versions = [FORMAT, *([DEEP_FORMAT] if deep else [])]
    total = hashlib.sha256(json.dumps([*versions, speckle and speckle.value]).encode())
    for samples in sides:
        total.update(f"{len(samples)} images".encode())
        for sample in samples:
            lineage = sample.lineage
            name = sample.name if lineage is None else f"{lineage.source} {lineage.variation}"
            total.update(f"{name} {sample.sha256} {sample.group}".encode())
    return total.hexdigest()
