"""The words of a quality card: what to think of the variations, and the card in one line."""

from __future__ import annotations

from typing import Any

from boxtwin.quality.similarity import COPY

# Layout distance below which a variation shows nothing but its source: correlation of the two above 0.97.
NEARLY_SOURCE = 0.03


def advice(figures: dict[str, dict[str, Any]]) -> str:
    """What to think of the variations, worst first."""
    found = []
    nearest, siblings = figures["nearest_real"], figures["siblings"]
    if figures["test"]["verdict"] == "leak":
        found.append("Variations show what is in test images: figures on these test images cannot be trusted.")
    if nearest["repeated_grain"] >= COPY:
        found.append("Almost nothing is new: most variations are a real image again, with its very grain.")
    elif nearest["value"] < NEARLY_SOURCE:
        found.append("Almost nothing is new: most variations differ from a real image in fine grain only.")
    elif nearest["verdict"] == "copy":
        found.append(f"{100 * nearest['copies']:.0f} % of the variations are a real image again.")
    if siblings["verdict"] == "copy" and nearest["repeated_grain"] < COPY:
        found.append("Variations of an image repeat each other: more of them add little.")
    measured = {"grey_levels": "grey levels", "looks": "speckle", "fine_detail": "fine detail"}
    unlike = [words for name, words in measured.items() if figures[name]["verdict"] == "unlike"]
    if unlike:
        found.append(f"They do not look like the real images: {', '.join(unlike)}.")
    elif not found:
        decided = any(figures[name]["verdict"] == "alike" for name in measured)
        found.append("They look like the real images." if decided else "Too few images to tell.")
    return " ".join(found)


def describe(card: dict[str, Any]) -> str:
    """A card in one line."""
    parts = []
    for name, figure in card["figures"].items():
        if name == "looks" and card["speckle"] is None:
            continue
        value = "" if figure["value"] is None else f" {figure['value']:.2f}"
        parts.append(f"{name.replace('_', ' ')}{value} {figure['verdict']}")
    return f"{card['verdict']}: {card['advice']} ({', '.join(parts)})"
