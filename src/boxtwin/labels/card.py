"""The label card of a store: what became of its boxes and images, with the figures behind it, and a picture to doubt.

Works on the lines of the store's manifest, so it needs no generator, no detector and no judge.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from boxtwin.boxes import Box
from boxtwin.datasets.image_io import Pixels, read_image
from boxtwin.files import write_bytes_atomically
from boxtwin.lettering import lettering, put, shorten

DECISIONS = ("kept", "shifted", "dropped", "added")
COLOURS = {"kept": "#2a9d4a", "shifted": "#1f5fa8", "dropped": "#d62839", "added": "#e08e0b"}
MEANINGS = {
    "kept": "boxes kept, the least certain first",
    "shifted": "boxes shifted (dashed: where it was), the least certain first",
    "dropped": "boxes dropped, the least certain first",
    "added": "boxes added, the least certain first",
}
# Evidence worth a histogram: the first five of these that are there. Contrast has no bounds, so its ratio comes first.
SHOWN = ("response", "correlation", "match", "contrast ratio", "detector", "score", "votes", "spread", "contrast")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 24
CROPS = 10  # pairs in a strip: what fits a page
CONTEXT = 0.75  # of the box's longer side, shown around it on every side
LEAST_CONTEXT = 8  # pixels


class _Case(NamedTuple):
    """One box in its store."""

    line: Mapping[str, Any]
    number: int  # among the boxes of its line
    decision: str
    box: Box
    label: int
    evidence: dict[str, float]  # what was looked at

    @property
    def measure(self) -> str | None:
        """The evidence that weighs most."""
        first = "match" if self.decision == "shifted" else "response"
        return next((name for name in (first, "score", "detector", "contrast") if name in self.evidence), None)

    @property
    def certainty(self) -> float:
        """The higher, the clearer the decision."""
        if self.measure is None:
            return 0.0
        value = self.evidence[self.measure]
        if self.measure == "contrast":
            value = abs(value)  # an object may be darker than what surrounds it
        return -value if self.decision == "dropped" else value


def tally(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Boxes by decision, of images that are used; images that are used; images that are refused."""
    used = [line["labels"] for line in lines if line["labels"]["refused"] is None]
    counts = {decision: sum(labels[decision] for labels in used) for decision in DECISIONS}
    return {**counts, "images": len(used), "refused": len(lines) - len(used)}


Sources = Mapping[str, Callable[[], Pixels]]


def write_card(folder: Path, lines: Sequence[Mapping[str, Any]], sources: Sources, classes: Sequence[str] = ()) -> None:
    """Write ``label_card.json`` and ``label_card.png`` of a store.

    Args:
        folder: of the store.
        lines: of its manifest, those that count.
        sources: reads the pixels of each real image, by its name.
        classes: of the data set, which the picture names where there are several.
    """
    ordered = sorted(lines, key=lambda line: (line["source"], line["variation"]))
    cases = _cases(ordered)
    refused = [line for line in ordered if line["labels"]["refused"] is not None]
    # What follows a colon is about the one image.
    reasons = Counter(str(line["labels"]["refused"]).split(":")[0] for line in refused)
    figures = _figures(cases)
    content = {
        "store": folder.name,
        **tally(ordered),
        "reasons": dict(reasons.most_common()),
        "evidence": figures,
        "refused_images": [
            {key: line[key] for key in ("source", "variation", "image")} | {"reason": line["labels"]["refused"]}
            for line in refused
        ],
    }
    write_bytes_atomically(folder / "label_card.png", _picture(folder, content, cases, sources, classes))
    write_bytes_atomically(folder / "label_card.json", json.dumps(content, indent=1).encode())


def _cases(lines: Sequence[Mapping[str, Any]]) -> list[_Case]:
    cases = []
    for line in lines:
        if line["labels"]["refused"] is not None:
            continue
        for number, box in enumerate(line["labels"]["boxes"]):
            evidence = {name: float(value) for name, value in box["evidence"].items() if value is not None}
            before = evidence.get("contrast_source", 0.0)
            if before != 0.0 and "contrast" in evidence:
                evidence["contrast ratio"] = float(np.clip(evidence["contrast"] / before, -1, 3))
            x1, y1, x2, y2 = box["box"]
            cases.append(_Case(line, number, box["decision"], (x1, y1, x2, y2), box["label"], evidence))
    return cases


def _figures(cases: Sequence[_Case]) -> dict[str, Any]:
    """Quantiles and histogram of each kind of evidence, by decision."""
    names = sorted({name for case in cases for name in case.evidence})
    figures: dict[str, Any] = {}
    for name in names:
        by_decision = {
            decision: np.array([c.evidence[name] for c in cases if c.decision == decision and name in c.evidence])
            for decision in DECISIONS
        }
        there = {decision: values for decision, values in by_decision.items() if values.size}
        edges = _edges(np.concatenate(list(there.values())))
        figures[name] = {
            "edges": edges.round(6).tolist(),
            "decisions": {
                decision: {
                    "boxes": int(values.size),
                    "quantiles": {str(share): round(float(np.quantile(values, share)), 4) for share in QUANTILES},
                    "histogram": np.histogram(values, edges)[0].tolist(),
                }
                for decision, values in there.items()
            },
        }
    return figures


def _edges(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edges"]:
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def _picture(
    folder: Path, content: dict[str, Any], cases: Sequence[_Case], sources: Sources, classes: Sequence[str]
) -> bytes:
    shown = [name for name in SHOWN if name in content["evidence"]][:5]
    strips = [decision for decision in DECISIONS if any(case.decision == decision for case in cases)]
    heights = [0.75, *([2.1] if shown else []), *(2.45 for _ in strips)]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    parts = iter(np.atleast_1d(np.array(figure.subfigures(len(heights), 1, height_ratios=heights))))
    _summary(next(parts), content)
    if shown:
        row = np.atleast_1d(np.array(next(parts).subplots(1, len(shown))))
        for axes, name in zip(row, shown, strict=True):
            _histogram(axes, name, content["evidence"][name])
    for decision in strips:
        _strip(next(parts), folder, decision, cases, sources, classes)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=100, facecolor="white", metadata={"Software": None})
    return encoded.getvalue()


def _summary(part: Any, content: dict[str, Any]) -> None:
    axes = part.subplots()
    axes.set_axis_off()
    boxes = ", ".join(f"{content[decision]} {decision}" for decision in DECISIONS)
    reasons = "; ".join(f"{count}: {reason}" for reason, count in content["reasons"].items())
    text = f"Boxes: {boxes}.   Images: {content['images']} used, {content['refused']} refused" + (
        f" ({reasons})" if reasons else ""
    )
    axes.text(0, 0.95, f"Labels of {content['store']}", fontsize=13, fontweight="bold", va="top", parse_math=False)
    axes.text(0, 0.35, text, fontsize=10, va="top", parse_math=False, wrap=True)


def _histogram(axes: Axes, name: str, figures: dict[str, Any]) -> None:
    edges = np.array(figures["edges"])
    bottom = np.zeros(len(edges) - 1)
    for decision, values in figures["decisions"].items():
        counts = np.array(values["histogram"], dtype=float)
        label = f"{decision} {values['boxes']}"
        axes.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=COLOURS[decision], label=label)
        bottom += counts
    axes.set_title(name, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.02)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _strip(
    part: Any, folder: Path, decision: str, cases: Sequence[_Case], sources: Sources, classes: Sequence[str]
) -> None:
    """Pairs of close-ups: the source above, the variation below."""
    chosen = sorted((case for case in cases if case.decision == decision), key=lambda case: case.certainty)[:CROPS]
    part.suptitle(MEANINGS[decision], fontsize=10, x=0.005, ha="left", color=COLOURS[decision], fontweight="bold")
    grid = part.subplots(2, CROPS)
    for column in range(CROPS):
        above, below = grid[0][column], grid[1][column]
        if column >= len(chosen):
            above.set_axis_off()
            below.set_axis_off()
            continue
        case = chosen[column]
        source, variation = sources[case.line["source"]](), read_image(folder / case.line["image"])
        before = _box_before(case)
        window = _window([box for box in (before, case.box) if box is not None], variation.shape[1], variation.shape[0])
        scale = _stretch(_crop(source, window))
        _show(above, source, window, scale, [(before, "-")] if before else [], COLOURS[decision])
        own: list[tuple[Box, str]] = [(case.box, "--" if decision == "dropped" else "-")]
        if decision == "shifted" and before:
            own.append((before, "--"))
        _show(below, variation, window, scale, own, COLOURS[decision])
        measure = case.measure
        stem = Path(case.line["source"]).stem
        title = f"{stem[-14:]} v{case.line['variation']:02d}"
        put(above.set_title(" ", fontsize=6), title)
        said = [] if measure is None else [f"{measure} {case.evidence[measure]:.2f}"]
        if len(classes) > 1:
            said.insert(0, shorten(classes[case.label], 12))
        label = "\n".join(said)
        below.set_xlabel(label, fontsize=7, labelpad=1, **lettering(label))
    if chosen:
        grid[0][0].set_ylabel("source", fontsize=7)
        grid[1][0].set_ylabel("variation", fontsize=7)


def _box_before(case: _Case) -> Box | None:
    """Where the generator said that it is; an added box was nowhere."""
    claimed = case.line["claimed"]["boxes"]
    if case.decision == "added" or case.number >= len(claimed):
        return None
    x1, y1, x2, y2 = claimed[case.number]
    return x1, y1, x2, y2


def _window(boxes: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """A square around the boxes with some context, as far as the image goes (xyxy)."""
    corners = np.array(boxes)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    side = float((high - low).max())
    half = side / 2 + max(CONTEXT * side, LEAST_CONTEXT)
    x, y = (low + high) / 2
    left, top = max(int(x - half), 0), max(int(y - half), 0)
    return (
        left,
        top,
        max(min(int(np.ceil(x + half)), width), left + 1),
        max(min(int(np.ceil(y + half)), height), top + 1),
    )


def _crop(pixels: Pixels, window: tuple[int, int, int, int]) -> Pixels:
    x1, y1, x2, y2 = window
    return pixels[y1:y2, x1:x2]


def _stretch(crop: Pixels) -> tuple[float, float]:
    """Black and white of a close-up: both pictures of a pair share the source's, so that fading shows."""
    low, high = np.quantile(crop, (0.01, 0.995))
    return float(low), float(max(high, low + 1))


def _show(
    axes: Axes,
    pixels: Pixels,
    window: tuple[int, int, int, int],
    scale: tuple[float, float],
    boxes: Sequence[tuple[Box, str]],
    colour: str,
) -> None:
    low, high = scale
    shown = np.clip((_crop(pixels, window).astype(np.float64) - low) / (high - low), 0, 1)
    x1, y1, x2, y2 = window
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(x1, x2, y2, y1), interpolation="nearest")
    for (left, top, right, bottom), style in boxes:
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=1.1, ls=style))
    axes.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
