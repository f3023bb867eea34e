"""The content of a quality card, and the sentences that sum it up.

Apart from the card itself, so that reading a card does not cost the imports that measuring takes.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

COPY = 0.5  # share of repeated grain from which on an image is a copy: more than half is the other image's
# Layout distance below which a variation shows nothing but its source: correlation of the two above 0.97.
NEARLY_SOURCE = 0.03

Verdict = Literal["alike", "unlike", "copy", "leak", "undecided"]
MEASURED = {"grey_levels": "grey levels", "looks": "speckle", "fine_detail": "fine detail"}


class Repeated(TypedDict):
    """A variation that repeats a test image."""

    variation: str
    test: str
    repeated_grain: float


class Metric(TypedDict):
    """One measurement of a card; None where there is nothing to measure."""

    value: float | None
    reference: float | None  # the same for real images
    verdict: Verdict
    typical: NotRequired[float | None]  # looks, fine_detail: of single variations
    variations: NotRequired[float | None]  # looks
    real: NotRequired[float | None]
    images_with_calm_sea: NotRequired[int]
    same_scene_below: NotRequired[float | None]  # nearest_real, siblings
    repeated_grain: NotRequired[float]
    copies: NotRequired[float | None]
    copies_among_real: NotRequired[float]
    probability: NotRequired[float]  # test
    matches: NotRequired[list[Repeated]]
    matches_among_real: NotRequired[int]


class Neighbours(TypedDict):
    """A variation, its source, and the real images that are nearest to it."""

    variation: str
    source: str
    real: str
    test: str
    distance: float
    test_distance: float


class QualityReport(TypedDict):
    """The content of ``quality_card.json``."""

    format: int
    made_of: str
    verdict: Verdict
    images: dict[str, int]
    speckle: str | None
    advice: NotRequired[str]  # cards of format 1 may have none
    figures: dict[str, Metric]
    nearest_pairs: list[Neighbours]


def advice(metrics: dict[str, Metric]) -> str:
    """What to think of the variations, worst first."""
    sentences = []
    nearest, siblings = metrics["nearest_real"], metrics["siblings"]
    repeats_real = nearest["repeated_grain"] >= COPY
    if metrics["test"]["verdict"] == "leak":
        sentences.append("Variations show what is in test images: metrics on these test images cannot be trusted.")
    if repeats_real:
        sentences.append("Almost nothing is new: most variations are a real image again, with its very grain.")
    elif (nearest["value"] or 0.0) < NEARLY_SOURCE:
        sentences.append("Almost nothing is new: most variations differ from a real image in fine grain only.")
    elif nearest["verdict"] == "copy":
        sentences.append(f"{100 * (nearest['copies'] or 0.0):.0f} % of the variations are a real image again.")
    if siblings["verdict"] == "copy" and not repeats_real:
        sentences.append("Variations of an image repeat each other: more of them add little.")
    unlike = [words for name, words in MEASURED.items() if metrics[name]["verdict"] == "unlike"]
    if unlike:
        sentences.append(f"They do not look like the real images: {', '.join(unlike)}.")
    elif not sentences:
        decided = any(metrics[name]["verdict"] == "alike" for name in MEASURED)
        sentences.append("They look like the real images." if decided else "Too few images to tell.")
    return " ".join(sentences)


def describe(report: QualityReport) -> str:
    """A card in one line."""
    parts = []
    for name, metric in report["figures"].items():
        if name != "looks" or report["speckle"] is not None:
            value = "" if metric["value"] is None else f" {metric['value']:.2f}"
            parts.append(f"{name.replace('_', ' ')}{value} {metric['verdict']}")
    return f"{report['verdict']}: {report['advice']} ({', '.join(parts)})"
