"""Making the images of a store again: whether a generator gives the same bytes, and restoring lost images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from boxtwin.datasets.image_io import encode_png
from boxtwin.datasets.sample import Dataset, Sample
from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock, write_bytes_atomically
from boxtwin.synthesis.generator import Generator, Refused, Request
from boxtwin.synthesis.identity import UNLABELLED, StoreIdentity, read_identity
from boxtwin.synthesis.manifest import MANIFEST, VariationRecord, fingerprint, image_is_whole, newest_lines
from boxtwin.synthesis.store import MODELS


@dataclass(frozen=True)
class Reproduced:
    """How the images of a store came out the second time."""

    equal: int
    restored: tuple[str, ...]  # equal to their lines in the manifest, where the files were missing or damaged
    different: tuple[str, ...]  # and why; their files were left as they are


def reproduce(store: Path, generator: Generator, dataset: Dataset) -> Reproduced:
    """Make every image of a store again and compare its bytes; put back those that are missing or damaged.

    ``generator`` made it, with the same parameters, of ``dataset``: InputError if that is another one, or has changed.
    """
    with exclusive_lock(store / ".lock", f"another process is at {store}; waiting for it"):
        identity = read_identity(store)
        newest = newest_lines(store)
        images = (store / "images").resolve()
        for line in newest.values():
            if not (store / line.image).resolve().is_relative_to(images):
                raise InputError(f"{store / MANIFEST} names images outside of its store, such as {line.image}")
        samples = {sample.name: sample for sample in dataset.samples}
        _check_data(identity, newest.values(), samples)
        models = store.parent / MODELS
        models.mkdir(parents=True, exist_ok=True)
        generator.fit([samples[name] for name, _ in identity.training], models)
        requests = [Request(samples[line.source], line.variation, line.seed) for line in newest.values()]
        equal, restored, different = 0, [], []
        progress = tqdm(generator.vary(requests), total=len(requests), desc=f"{generator.name}: again", unit="image")
        for request, outcome in zip(requests, progress, strict=True):
            line = newest[request.key]
            if isinstance(outcome, Refused):
                different.append(f"{line.image}: {outcome.reason}")
                continue
            content = encode_png(outcome.pixels)
            if hashlib.sha256(content).hexdigest() != line.image_sha256:
                different.append(f"{line.image}: other bytes")
            elif image_is_whole(store, line):
                equal += 1
            else:
                write_bytes_atomically(store / line.image, content)
                restored.append(line.image)
    return Reproduced(equal, tuple(restored), tuple(different))


def _check_data(identity: StoreIdentity, lines: Iterable[VariationRecord], samples: dict[str, Sample]) -> None:
    if UNLABELLED in dict(identity.training):
        raise InputError(
            "the generator of the store has learnt from unlabelled images too, which are no part of a data set, so "
            "that its images cannot be compared. Images lost from it are made again by the generate.py command that "
            "made the store, without regenerate"
        )
    wanted = dict(identity.training) | {line.source: line.source_fingerprint for line in lines}
    missing = sorted(wanted.keys() - samples.keys())
    changed = sorted(name for name in wanted.keys() & samples.keys() if fingerprint(samples[name]) != wanted[name])
    for names, what in ((missing, "are not in the data set at hand"), (changed, "have changed since, or their labels")):
        if names:
            problem = f"{len(names)} images that the store was made of {what}: {', '.join(names[:10])}"
            cure = (
                f"Give the settings of data set {identity.dataset} as they were, such as dataset=… and dataset.root=…"
            )
            raise InputError(f"{problem}. {cure}")
