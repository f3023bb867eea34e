"""The label card of a store: what was decided about its boxes and images, the evidence for it, and a picture to check.

It follows from the lines of the store's manifest, so it needs no generator and no detector.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from boxtwin.boxes import Box, iou_matrix
from boxtwin.datasets.image_io import Pixels, read_image
from boxtwin.datasets.sample import DECISIONS, Decision
from boxtwin.files import write_bytes_atomically
from boxtwin.lettering import lettering, put, shorten

COLOURS = {"kept": "#2a9d4a", "shifted": "#1f5fa8", "dropped": "#d62839", "added": "#e08e0b"}
# Evidence worth a histogram: the first five of these that are there. Contrast has no bounds, so its ratio comes first.
SHOWN = (
    *("response", "correlation", "match", "contrast ratio", "detector", "score", "votes", "spread"),
    *("moved", "contrast"),
)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 24
ENDING = 14  # characters of an image's name
CROPS = 10  # pairs in a strip: what fits a page
CONTEXT = 0.75  # of the box's longer side, shown around it on every side
LEAST_CONTEXT = 8  # pixels

_Line = Mapping[str, Any]  # of a store's manifest
_Read = Callable[[], Pixels]


class Distribution(TypedDict):
    """Values of one kind of evidence, of the boxes with one decision."""

    boxes: int
    quantiles: dict[str, float]  # by their shares, as text
    histogram: list[int]


class EvidenceValues(TypedDict):
    """One kind of evidence: the edges of its histograms, and its values by decision."""

    edges: list[float]
    decisions: dict[Decision, Distribution]


class Counts(TypedDict):
    """Boxes of used images by decision, used images, and refused images."""

    kept: int
    shifted: int
    dropped: int
    added: int
    images: int
    refused: int


class LabelCard(Counts):
    """The content of ``label_card.json``."""

    store: str
    reasons: dict[str, int]  # why images are refused
    evidence: dict[str, EvidenceValues]
    refused_images: list[dict[str, Any]]  # source, variation, image and reason of each
    minutes: NotRequired[float]  # that a person spent on the used images, where known
    objects: NotRequired[int]  # of the sources of used images; cards of earlier versions have none


class _Case(NamedTuple):
    """One box in its store."""

    line: _Line
    claimed: Box | None  # where the generator said that the box is; None for an added box
    decision: Decision
    box: Box
    label: int
    evidence: dict[str, float]  # what was measured

    @property
    def measure(self) -> str | None:
        """The evidence that weighs most."""
        first = "match" if self.decision == "shifted" else "response"
        return next((name for name in (first, "score", "detector", "contrast", "moved") if name in self.evidence), None)

    @property
    def certainty(self) -> float:
        """The higher, the clearer the decision."""
        value = 0.0 if self.measure is None else self.evidence[self.measure]
        value = abs(value) if self.measure == "contrast" else value  # an object may be darker than what surrounds it
        return -value if self.decision == "dropped" or self.measure == "moved" else value


_PairOf = Callable[[_Case], tuple[Pixels, Pixels]]  # reads the source and the variation


def tally(lines: Sequence[_Line]) -> Counts:
    """Count the boxes and images of a manifest's lines."""
    used = [line["labels"] for line in lines if line["labels"]["refused"] is None]
    counts = {decision: sum(labels[decision] for labels in used) for decision in DECISIONS}
    return cast(Counts, {**counts, "images": len(used), "refused": len(lines) - len(used)})


def write_card(
    folder: Path,
    lines: Sequence[_Line],
    sources: Mapping[str, _Read],
    classes: Sequence[str] = (),
    objects: Mapping[str, int] | None = None,
    *,
    to: Path | None = None,
) -> None:
    """Write ``label_card.json`` and ``label_card.png`` of a store, from those lines of its manifest that count.

    ``sources`` reads the pixels of each real image, by its name; ``objects`` has the number of its objects. The files
    are written to the folder ``to``, by default that of the store.
    """
    ordered = sorted(lines, key=lambda line: (line["source"], line["variation"]))
    cases = _cases(ordered)
    refused = [
        {key: line[key] for key in ("source", "variation", "image")} | {"reason": line["labels"]["refused"]}
        for line in ordered
        if line["labels"]["refused"] is not None
    ]
    # What follows a colon is about the one image.
    reasons = dict(Counter(image["reason"].split(":")[0] for image in refused).most_common())
    evidence = _evidence(cases)
    about = {"reasons": reasons, "evidence": evidence, "refused_images": refused}
    card = cast(LabelCard, {"store": folder.name, **tally(ordered), **about})
    minutes = [line["labels"].get("minutes") for line in ordered if line["labels"]["refused"] is None]
    if known := [each for each in minutes if each is not None]:
        card["minutes"] = round(math.fsum(known), 4)

    if objects is not None:
        card["objects"] = sum(objects[line["source"]] for line in ordered if line["labels"]["refused"] is None)

    def pair_of(case: _Case) -> tuple[Pixels, Pixels]:
        return sources[case.line["source"]](), read_image(folder / case.line["image"])

    to = folder if to is None else to
    write_bytes_atomically(to / "label_card.png", _picture(card, cases, pair_of, classes))
    write_bytes_atomically(to / "label_card.json", json.dumps(card, indent=1).encode())


def _cases(lines: Sequence[_Line]) -> list[_Case]:
    cases = []
    for line in lines:
        for number, box in enumerate(line["labels"]["boxes"] if line["labels"]["refused"] is None else ()):
            evidence = {name: float(value) for name, value in box["evidence"].items() if value is not None}
            contrast = evidence.get("contrast_source", 0.0)
            if contrast != 0.0 and "contrast" in evidence:
                evidence["contrast ratio"] = float(np.clip(evidence["contrast"] / contrast, -1, 3))
            before = None if box["decision"] == "added" else _claimed(line["claimed"]["boxes"], number, box)
            cases.append(_Case(line, before, box["decision"], tuple(box["box"]), box["label"], evidence))
    return cases


def _claimed(claimed: Sequence[Any], number: int, box: Mapping[str, Any]) -> Box | None:
    """Where the generator said that a box is; of a person's boxes, which are in another order, the nearest claimed."""
    if box["evidence"].keys() <= {"moved"} and claimed:
        overlaps = iou_matrix(np.array(claimed), np.array([box["box"]]))[:, 0]
        number = int(overlaps.argmax()) if overlaps.max() > 0 else len(claimed)
    for x1, y1, x2, y2 in claimed[number : number + 1]:
        return float(x1), float(y1), float(x2), float(y2)
    return None


def _evidence(cases: Sequence[_Case]) -> dict[str, EvidenceValues]:
    """Quantiles and histogram of each kind of evidence, by decision."""
    kinds: dict[str, EvidenceValues] = {}
    for name in sorted({name for case in cases for name in case.evidence}):
        measured = [case for case in cases if name in case.evidence]
        edges = np.histogram_bin_edges([case.evidence[name] for case in measured], BINS)
        kinds[name] = {"edges": edges.round(6).tolist(), "decisions": {}}
        for decision in DECISIONS:
            values = np.array([case.evidence[name] for case in measured if case.decision == decision])
            if values.size:
                kinds[name]["decisions"][decision] = {
                    "boxes": int(values.size),
                    "quantiles": {str(share): round(float(np.quantile(values, share)), 4) for share in QUANTILES},
                    "histogram": np.histogram(values, edges)[0].tolist(),
                }
    return kinds


def _picture(card: LabelCard, cases: Sequence[_Case], pair_of: _PairOf, classes: Sequence[str]) -> bytes:
    shown = [name for name in SHOWN if name in card["evidence"]][:5]
    strips = [decision for decision in DECISIONS if any(case.decision == decision for case in cases)]
    heights = [0.75, *([2.3] if shown else []), *(2.45 for _ in strips)]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    axes = next(parts).subplots()
    axes.set_axis_off()
    boxes = ", ".join(f"{card[decision]} {decision}" for decision in DECISIONS)
    reasons = "; ".join(f"{count}: {reason}" for reason, count in card["reasons"].items())
    text = f"Boxes: {boxes}.   Images: {card['images']} used, {card['refused']} refused"
    axes.text(0, 0.95, f"Labels of {card['store']}", fontsize=13, fontweight="bold", va="top", parse_math=False)
    text += f" ({reasons})" * bool(reasons)
    text += f".   Minutes of a person: {card['minutes']:.1f}" if "minutes" in card else ""
    axes.text(0, 0.35, text, fontsize=10, va="top", parse_math=False, wrap=True)
    if shown:
        for axes, name in zip(next(parts).subplots(1, len(shown), squeeze=False).flat, shown, strict=True):
            _histogram(axes, name, card["evidence"][name])
    for decision in strips:
        chosen = sorted((case for case in cases if case.decision == decision), key=lambda case: case.certainty)
        _strip(next(parts), decision, _once(chosen)[:CROPS], pair_of, classes)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=100, facecolor="white", metadata={"Software": None})
    return encoded.getvalue()


def _once(cases: Sequence[_Case]) -> list[_Case]:
    """The first case of each object of a source, which would fill a strip if all its variations were shown."""
    first: dict[tuple[str, Box], _Case] = {}
    for case in cases:
        first.setdefault((case.line["source"], case.claimed or case.box), case)
    return list(first.values())


def _histogram(axes: Axes, name: str, values: EvidenceValues) -> None:
    edges = np.array(values["edges"])
    bottom = np.zeros(len(edges) - 1)
    for decision, distribution in values["decisions"].items():
        counts = np.array(distribution["histogram"], dtype=float)
        label = f"{decision} {distribution['boxes']}"
        axes.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=COLOURS[decision], label=label)
        bottom += counts
    axes.set_title(name, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.02)
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))  # below the bars
    axes.spines[["top", "right"]].set_visible(False)


def _strip(part: Any, decision: Decision, chosen: Sequence[_Case], pair_of: _PairOf, classes: Sequence[str]) -> None:
    """Pairs of close-ups: the source above, the variation below."""
    was = " (dashed: where it was)" if decision == "shifted" else ""
    title = f"boxes {decision}{was}, each object of a source once, the least certain first; contrast stretched"
    colour = COLOURS[decision]
    part.suptitle(title, fontsize=10, x=0.005, ha="left", color=colour, fontweight="bold")
    grid = part.subplots(2, CROPS)
    for axes in grid[:, len(chosen) :].flat:
        axes.set_axis_off()
    for column, case in zip(grid.T, chosen, strict=False):
        pair, before = pair_of(case), case.claimed
        height, width = pair[1].shape[:2]
        x1, y1, x2, y2 = _window([box for box in (before, case.box) if box is not None], width, height)
        crops = [pixels[y1:y2, x1:x2].astype(np.float64) for pixels in pair]
        # The darkest and the brightest of both crops are the source's, so that fading shows.
        low, high = np.quantile(crops[0], (0.01, 0.995))
        place = [(case.box, "--" if decision == "dropped" else "-")]
        was_at = [] if before is None else [(before, "-")]
        moved_from = [(before, "--")] if before is not None and decision == "shifted" else []
        for axes, crop, boxes in zip(column, crops, (was_at, place + moved_from), strict=True):
            shown = np.clip((crop - low) / max(high - low, 1.0), 0, 1)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(x1, x2, y2, y1), interpolation="nearest")
            for (left, top, right, bottom), style in boxes:
                size = (right - left, bottom - top)
                axes.add_patch(Rectangle((left, top), *size, fill=False, ec=colour, lw=1.1, ls=style))
            axes.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
        stem = Path(case.line["source"]).stem  # its end tells images of a series apart
        ending = stem if len(stem) <= ENDING else f"…{stem[1 - ENDING :]}"
        put(column[0].set_title(" ", fontsize=6), f"{ending} v{case.line['variation']:02d}")
        words = [shorten(classes[case.label], 12)] if len(classes) > 1 else []
        words += [f"{case.measure} {case.evidence[case.measure]:.2f}"] if case.measure else []
        label = "\n".join(words)
        column[1].set_xlabel(label, fontsize=7, labelpad=1, **lettering(label))
    grid[0][0].set_ylabel("source", fontsize=7)
    grid[1][0].set_ylabel("variation", fontsize=7)


def _window(boxes: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """A square around the boxes with some context, as far as the image goes (xyxy)."""
    corners = np.array(boxes)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    side = float((high - low).max())
    half = side / 2 + max(CONTEXT * side, LEAST_CONTEXT)
    (x, y), limit = (low + high) / 2, (width, height)
    left, top = max(int(x - half), 0), max(int(y - half), 0)
    right, bottom = (min(int(np.ceil(middle + half)), most) for middle, most in zip((x, y), limit, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)
