"""`generate.py dry_run=true`: what a generator would download, need, make and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from boxtwin.errors import InputError
from boxtwin.run.build import Prepared
from boxtwin.run.label_detectors import detectors_to_train
from boxtwin.synthesis.diffusers_pipelines.checkpoints import Checkpoint
from boxtwin.synthesis.diffusers_pipelines.loading import PipelineGenerator
from boxtwin.synthesis.downloads import Needs, needs_of
from boxtwin.synthesis.generator import Generator, Request

BITS = {"bitsandbytes_4bit": 4.5, "bitsandbytes_8bit": 8}  # of a weight; with scales of 64 weights each


def describe_dry_run(prepared: Prepared) -> str:
    """What the command would do without ``dry_run=true``. Nothing is made; at most the index of a model is read.

    Raises `InputError` where the command would be refused, as far as that is known without loading a model.
    """
    library, generator = prepared.store, prepared.store.generator
    generator.check_early()
    missing = library.missing(prepared.sources, prepared.per_image)
    validation = len(prepared.sources) - len(prepared.split.train)
    beside = f" and {validation} validation" if validation else ""
    lines = [
        f"{generator.name}: dry run, nothing is made",
        f"variations: {len(missing)} of {prepared.wanted} are missing in {library.folder} "
        f"({prepared.per_image} of each of {len(prepared.split.train)} training{beside} images)",
        f"cost: {_cost(generator, missing)}",
    ]
    if missing and (detectors := detectors_to_train(prepared)):
        steps = detectors[0].config.trainer.steps
        lines.append(f"labels: {len(detectors)} detector(s) would be trained first, {steps} steps each")
    if not isinstance(generator, PipelineGenerator):
        return "\n".join([*lines, "downloads: none"])
    loading, weights, complete = generator.loading, [0.0], True
    for title, checkpoint in generator.checkpoints.items():
        if checkpoint is None:
            continue
        main = title == "checkpoint"
        replaced = ("transformer",) if main and loading.file else ()
        needs = needs_of(checkpoint, generator.compute_dtype.itemsize, loading.variant if main else None, replaced)
        lines += _described(title, checkpoint, needs)
        complete = complete and bool(needs.sizes)
        packed = BITS.get(loading.quantisation or "", 0) / (8 * generator.compute_dtype.itemsize) if main else 0
        weights += [size * packed if packed and name == "transformer" else size for name, size in needs.weights.items()]
    if loading.file:
        weights.append(loading.file.stat().st_size)
        lines.append(f"load.quantisation: {loading.file}, {_gigabytes(weights[-1])}")
    if not any(weights):
        return "\n".join([*lines, "memory of the weights: not known"])
    lines.append(
        f"memory of the weights: {'' if complete else 'at least '}{_gigabytes(sum(weights))} in "
        f"{generator.dtype_name}, the largest network {_gigabytes(max(weights))}; "
        "computing takes more, by the size of the squares"
    )
    return "\n".join(lines)


def _cost(generator: Generator, requests: Sequence[Request]) -> str:
    try:
        cost = math.fsum(generator.price_usd(request.source) for request in requests)
    except InputError as error:  # a host without a known price
        return f"not known: {error}"
    return f"about {cost:.2f} USD" if cost else "none"


def _described(title: str, checkpoint: Checkpoint, needs: Needs) -> list[str]:
    name = f"{title}: {checkpoint.name}"
    if checkpoint.folder is None:
        name += f", revision {checkpoint.revision or 'main'}"
    if not needs.source:
        return [f"{name}: the Hugging Face Hub cannot be reached, and no file of this model is in the local cache"]
    size = sum(needs.sizes.values())
    here = sum(needs.sizes[file] for file in needs.cached)
    files = f"{len(needs.sizes)}, {_gigabytes(size)} (from {needs.source})"
    if checkpoint.folder is None:
        left = len(needs.sizes) - len(needs.cached)
        files += f"; {left} of them ({_gigabytes(size - here)}) would be downloaded; the others are in the cache"
    if not needs.sizes:
        files = "not shown before access is granted"
    access = "; access must be asked for at the hub first (hf auth login)" if needs.gated else ""
    networks = ", ".join(f"{network or 'weights'} {_gigabytes(taken)}" for network, taken in needs.weights.items())
    return [
        name,
        f"  licence by its model card: {needs.licence or 'not named'}{access}",
        f"  files: {files}",
        f"  in memory: {networks or 'nothing'}",
    ]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 5e6 else f"{size / 1e6:.3f} MB"
