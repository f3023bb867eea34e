"""The quality card of a store of variations: do they look real, are they new, has nothing of the test images got in?

The card is a report and nothing else. It is the only place where variations and test images meet: it is written after
the variations are made, no generator, label rule, training or choice of a checkpoint reads it, and nothing is left out
because of it. A person does that, by choosing another generator.

Each figure stands beside the same figure for real images held against each other, and has a verdict:

===============  =======================================================================================================
grey_levels      Wasserstein distance of the variations' grey levels from those of their sources, in standard deviations
                 of these. *alike*: no farther than the halves of the real images are from each other 19 times of 20
                 (`reference_of_halves`), where less than 0.02 always counts as alike and more than 0.1 never does.
looks            Ratio of the equivalent numbers of looks on calm sea, variations to sources (geometric means over
                 images). Only for data whose pixels are a radar's (``speckle``). *alike*: no farther from 1 than the
                 halves' ratio, where 5% always counts as alike and 25% never does: variations show the scenes of their
                 sources, so that the difference of scenes, which the halves have, is no excuse for more.
fine_detail      Ratio of the power in the top octave of the spectrum, in the same way.
nearest_real     Median layout distance (`image_likeness`) to the nearest training or validation image. *copy*: more
                 than one variation in 20 repeats over half of a real image's grain, and more of them than of the real
                 images do; *alike*: the median is below what all but one in 20 real images keep from each other, so
                 these are the same scenes again; else *unlike*.
siblings         The same to the other variations of the source. *copy*: more than one in 20 repeats its predecessor.
test             Median layout distance to the nearest test image, beside that of the real images. *leak*: a variation
                 repeats more of a test image's grain than its source does (a split that tears overlapping chips apart
                 is not the generator's fault); or the variations are nearer to test images than the real ones are, by
                 more than chance gives once in a hundred times (`nearer_than_chance`; each source counts once, with
                 the median of its variations, because these are not independent). Otherwise *unlike*.
===============  =======================================================================================================

*undecided* stands where there are too few images, or nothing to measure. The verdict of the card is the worst of its
figures: leak, copy, unlike, alike; *unlike* is no fault in a distance. ``advice`` says in a sentence or two what to
think of the variations.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from boxtwin.datasets.sample import Sample
from boxtwin.files import exclusive_lock, link_file, write_bytes_atomically
from boxtwin.quality import texture as quality
from boxtwin.quality.advice import advice
from boxtwin.quality.measure import Evidence, gather
from boxtwin.quality.similarity import COPY, nearer_than_chance
from boxtwin.quality.texture import Speckle

FORMAT = 2  # of the card, and of how its figures are computed
PAIRS = 5  # what the picture has room for
NAME, CARDS = "quality_card", "quality_cards"
ALWAYS, NEVER = math.log(1.05), math.log(1.25)  # differences of logarithms
ALWAYS_GREY, NEVER_GREY = 0.02, 0.1  # standard deviations
COPIES = 0.05  # the share of copies that chance might explain
CHANCE = 0.01  # the probability below which nearness to test images is none

Verdict = Literal["alike", "unlike", "copy", "leak", "undecided"]


class QualityCard(NamedTuple):
    """A card: what it says, and its two files."""

    summary: dict[str, Any]
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

    Splits share the store of a generator that learns nothing, and runs of a sweep may want cards of either in turn. So
    each card is kept in ``quality_cards``, by a hash of the pixels that it was made of, and made only once; the two
    files in the store's own folder are copies of the last one asked for. A store that has grown gets a new card. Other
    labels of the same pixels do not, in this store or one beside it, though boxes are drawn and kept out of the calm
    sea: a figure changes by little.

    Args:
        folder: of the store.
        variations: all variations that are there and used; each names one of the real images as its source.
        training, validation: the real images that may have variations.
        test: real images that nothing was made of.
        speckle: what a radar's pixel values stand for; None for pictures that have no speckle.
    """
    if not variations:
        raise ValueError("a quality card needs at least one variation, got none")
    made_of = _fingerprint(variations, training, validation, test, speckle)
    kept = folder / CARDS / made_of[:12]
    report, picture = kept / f"{NAME}.json", kept / f"{NAME}.png"
    with exclusive_lock(folder / CARDS / ".lock", f"another process is writing a quality card of {folder}; waiting"):
        others = folder.parent.glob(f"*/{CARDS}/{made_of[:12]}/{NAME}.json")
        if not report.exists() and (other := next(others, None)) is not None:
            for file in (picture, report):
                link_file(other.with_name(file.name), file)
        if not report.exists():
            # Imported here: most runs find their card and need no figure.
            from boxtwin.quality.plot import draw

            evidence = gather(variations, training, validation, test, speckle)
            summary = {"format": FORMAT, "made_of": made_of} | summarise(evidence)
            draw(evidence, summary, picture, title=folder.name)
            # Last: where it stands, the picture does.
            write_bytes_atomically(report, json.dumps(summary, indent=1).encode())
        for file in (picture, report):
            copy = folder / file.name
            if not copy.exists() or copy.read_bytes() != file.read_bytes():
                write_bytes_atomically(copy, file.read_bytes())
    return QualityCard(json.loads(report.read_text()), report, picture)


def figures_of(card: dict[str, Any]) -> dict[str, float]:
    """The few figures of a card that are tracked with every run; nan where there is none."""
    figures = card["figures"]
    values = {
        "quality_grey_distance": figures["grey_levels"]["value"],
        "quality_enl_ratio": figures["looks"]["value"],
        "quality_fine_detail_ratio": figures["fine_detail"]["value"],
        "quality_real_distance": figures["nearest_real"]["value"],
        "quality_copies": figures["nearest_real"]["copies"],
        "quality_sibling_distance": figures["siblings"]["value"],
        "quality_test_distance": figures["test"]["value"],
        "quality_test_probability": figures["test"]["probability"],
        "quality_test_matches": len(figures["test"]["matches"]),
    }
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def summarise(evidence: Evidence) -> dict[str, Any]:
    """Figures, references and verdicts of a card, as plain values; None for what is not defined."""
    figures = {
        "grey_levels": _grey_levels(evidence),
        "looks": _looks(evidence),
        "fine_detail": _fine_detail(evidence),
        "nearest_real": _nearest_real(evidence),
        "siblings": _siblings(evidence),
        "test": _test(evidence),
    }
    verdicts = {name: figure["verdict"] for name, figure in figures.items()}
    if verdicts["test"] == "leak":
        verdict: Verdict = "leak"
    elif "copy" in (verdicts["nearest_real"], verdicts["siblings"]):
        verdict = "copy"
    else:
        looks = {verdicts[name] for name in ("grey_levels", "looks", "fine_detail")} - {"undecided"}
        verdict = "unlike" if "unlike" in looks else "alike" if looks else "undecided"
    card = {
        "verdict": verdict,
        "images": {
            "variations": len(evidence.variations),
            "sources": len(set(evidence.sources)),
            "real": len(evidence.real),
            "test": len(evidence.test),
        },
        "speckle": evidence.speckle,
        "advice": advice(figures),
        "figures": figures,
        "nearest_pairs": [
            {
                "variation": evidence.variations[index].name,
                "source": evidence.real[evidence.sources[index]].name,
                "real": evidence.real[evidence.relations[index].nearest].name,
                "test": evidence.test[evidence.relations[index].nearest_test].name,
                "distance": evidence.relations[index].distance,
                "test_distance": evidence.relations[index].test_distance,
            }
            for index in nearest_pairs(evidence)
        ],
    }
    plain: dict[str, Any] = _plain(card)
    return plain


def nearest_pairs(evidence: Evidence) -> list[int]:
    """The variations that come nearest to a test image, one of each source; those that repeat one come first."""
    order = sorted(
        range(len(evidence.relations)),
        key=lambda index: (-evidence.relations[index].repeats_test, evidence.relations[index].test_distance),
    )
    chosen: dict[int, int] = {}
    for index in order:
        chosen.setdefault(evidence.sources[index], index)
    return list(chosen.values())[:PAIRS]


def _grey_levels(evidence: Evidence) -> dict[str, Any]:
    real = evidence.real_levels

    def distance(first: list[int], second: list[int]) -> float:
        return quality.wasserstein(
            quality.pooled([real[index] for index in first]), quality.pooled([real[index] for index in second])
        )

    reference = quality.reference_of_halves([sample.group for sample in evidence.real], distance)
    value = quality.wasserstein(
        evidence.levels,
        quality.pooled([real[source] for source in sorted(set(evidence.sources))]),
    )
    return {
        "value": value,
        "reference": reference,
        "verdict": _alike(value, reference, always=ALWAYS_GREY, never=NEVER_GREY),
    }


def _looks(evidence: Evidence) -> dict[str, Any]:
    made = [math.log(look.looks) for look in evidence.variation_looks]
    real = [math.log(look.looks) for look in evidence.real_looks]
    figure = _ratio(evidence, made, real)
    levels = {
        "variations": math.exp(quality.log_ratio(made, [0.0])),
        "real": math.exp(quality.log_ratio([real[source] for source in sorted(set(evidence.sources))], [0.0])),
    }
    return figure | levels | {"images_with_calm_sea": sum(not math.isnan(value) for value in made)}


def _fine_detail(evidence: Evidence) -> dict[str, Any]:
    made = [quality.fine_energy(look.spectrum) for look in evidence.variation_looks]
    return _ratio(evidence, made, [quality.fine_energy(look.spectrum) for look in evidence.real_looks])


def _ratio(evidence: Evidence, made: Sequence[float], real: Sequence[float]) -> dict[str, Any]:
    """Variations against their sources, from one logarithm per image; the reference is a factor, at least 1.

    ``typical`` is the median factor between a variation and its own source, at least 1: errors to either side, which
    cancel in the ratio of the means, do not cancel in it.
    """

    def difference(first: list[int], second: list[int]) -> float:
        return quality.log_ratio([real[index] for index in first], [real[index] for index in second])

    reference = quality.reference_of_halves([sample.group for sample in evidence.real], difference)
    value = quality.log_ratio(made, [real[source] for source in sorted(set(evidence.sources))])
    pairs = [abs(own - real[source]) for own, source in zip(made, evidence.sources, strict=True)]
    defined = [pair for pair in pairs if not math.isnan(pair)]
    return {
        "value": math.exp(value),
        "reference": math.exp(reference),
        "typical": math.exp(float(np.median(defined))) if defined else math.nan,
        "verdict": _alike(value, reference, always=ALWAYS, never=NEVER),
    }


def _nearest_real(evidence: Evidence) -> dict[str, Any]:
    repeats = [relation.repeats for relation in evidence.relations]
    copies, copies_among_real = (
        _share_of_copies(repeats),
        _share_of_copies([r.repeats for r in evidence.real_relations]),
    )
    value = float(np.median([relation.distance for relation in evidence.relations]))
    return {
        "value": value,
        **_between_real(evidence),
        "repeated_grain": float(np.median(repeats)),
        "copies": copies,
        "copies_among_real": copies_among_real,
        "verdict": _near(evidence, value, copies=copies > max(COPIES, copies_among_real)),
    }


def _siblings(evidence: Evidence) -> dict[str, Any]:
    compared = [relation for relation in evidence.relations if not math.isnan(relation.sibling_distance)]
    if not compared:
        return {"value": None, **_between_real(evidence), "copies": None, "verdict": "undecided"}
    value = float(np.median([relation.sibling_distance for relation in compared]))
    # The first variation of each source has no predecessor.
    repeats = [relation.repeats_sibling for relation in compared if not math.isnan(relation.repeats_sibling)]
    copies = _share_of_copies(repeats)
    return {
        "value": value,
        **_between_real(evidence),
        "repeated_grain": float(np.median(repeats)),
        "copies": copies,
        "verdict": _near(evidence, value, copies=copies > COPIES),
    }


def _test(evidence: Evidence) -> dict[str, Any]:
    of_source: dict[int, list[float]] = {}
    for source, relation in zip(evidence.sources, evidence.relations, strict=True):
        of_source.setdefault(source, []).append(relation.test_distance)
    medians = np.array([np.median(distances) for distances in of_source.values()])
    real = np.array([relation.test_distance for relation in evidence.real_relations])
    probability = nearer_than_chance(medians, real)
    matches = [
        {
            "variation": sample.name,
            "test": evidence.test[relation.nearest_test].name,
            "repeated_grain": relation.repeats_test,
        }
        for sample, relation in zip(evidence.variations, evidence.relations, strict=True)
        if relation.repeats_test > 0
    ]
    return {
        "value": float(np.median([relation.test_distance for relation in evidence.relations])),
        "reference": float(np.median(real)),
        "probability": probability,
        "matches": matches,
        "matches_among_real": sum(relation.repeats_test > 0 for relation in evidence.real_relations),
        "verdict": "leak" if matches or probability < CHANCE else "unlike",
    }


def _alike(value: float, reference: float, *, always: float, never: float) -> Verdict:
    if math.isnan(value) or math.isnan(reference):
        return "undecided"
    return "alike" if abs(value) <= min(max(reference, always), never) else "unlike"


def _near(evidence: Evidence, value: float, *, copies: bool) -> Verdict:
    if copies:
        return "copy"
    limit = _between_real(evidence)["same_scene_below"]
    if math.isnan(limit):
        return "undecided"
    return "alike" if value < limit else "unlike"


def _between_real(evidence: Evidence) -> dict[str, float]:
    """How far real images are from the nearest other one: the middle, and what 19 of 20 exceed."""
    distances = [relation.distance for relation in evidence.real_relations]
    if len(distances) < 2:
        return {"reference": math.nan, "same_scene_below": math.nan}
    return {"reference": float(np.median(distances)), "same_scene_below": float(np.quantile(distances, 0.05))}


def _share_of_copies(repeats: Sequence[float]) -> float:
    return float(np.mean([share >= COPY for share in repeats]))


def _plain(value: Any) -> Any:
    """Without what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _fingerprint(
    variations: Sequence[Sample],
    training: Sequence[Sample],
    validation: Sequence[Sample],
    test: Sequence[Sample],
    speckle: Speckle | None,
) -> str:
    """Of what is seen, not of what is labelled; variations go by their source, whichever store they are in."""
    total = hashlib.sha256(json.dumps([FORMAT, speckle]).encode())
    for samples in (variations, training, validation, test):
        total.update(f"{len(samples)} images".encode())
        for sample in samples:
            of = sample.lineage
            name = sample.name if of is None else f"{of.source} {of.variation}"
            total.update(f"{name} {sample.sha256} {sample.group}".encode())
    return total.hexdigest()
