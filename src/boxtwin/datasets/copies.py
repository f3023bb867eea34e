"""Images that equal, or nearly equal, others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from boxtwin.datasets.inspection import nearly_same
from boxtwin.datasets.sample import Sample


def alike(samples: Sequence[Sample], others: Sequence[Sample], beside: Sequence[Sample] = ()) -> dict[str, str]:
    """Names of the ``samples`` that equal, or nearly equal, one of ``others``, each with the name of that one.

    ``beside`` are more images of the kind: what all have in common, as views of a fixed camera do, makes none alike.
    """
    files = {sample.sha256: sample.name for sample in others}
    ours, theirs, rest = ([(s.name, s.signature) for s in side if s.signature] for side in (samples, others, beside))
    pixels = {signature.sha256: name for name, signature in theirs}
    pairs = nearly_same(*([signature for _, signature in side] for side in (ours, theirs, rest)))
    return (
        {ours[i][0]: theirs[j][0] for i, j in pairs}
        | {name: pixels[signature.sha256] for name, signature in ours if signature.sha256 in pixels}
        | {sample.name: files[sample.sha256] for sample in samples if sample.sha256 in files}
    )


def repeated(samples: Sequence[Sample], beside: Sequence[Sample] = ()) -> dict[str, str]:
    """Names of the ``samples`` that equal, or nearly equal, an earlier one, each with the name of the first such.

    ``beside`` as for `alike`.
    """
    signed = [sample for sample in samples if sample.signature]
    signatures = [sample.signature for sample in signed if sample.signature]
    rest = [sample.signature for sample in beside if sample.signature]
    earlier: dict[str, set[int]] = defaultdict(set)  # places among the samples
    place = {sample.name: number for number, sample in enumerate(samples)}
    for i, j in nearly_same(signatures, signatures, rest):
        if j < i:
            earlier[signed[i].name].add(place[signed[j].name])
    first: dict[str, int] = {}  # image of each file's content, and of each image's pixels
    copies: dict[str, str] = {}
    for number, sample in enumerate(samples):
        for content in filter(None, (sample.sha256, sample.signature and sample.signature.sha256)):
            if (other := first.setdefault(content, number)) != number:
                earlier[sample.name].add(other)
        originals = [one for one in sorted(earlier.get(sample.name, ())) if samples[one].name not in copies]
        if originals:
            copies[sample.name] = samples[originals[0]].name
    return copies
