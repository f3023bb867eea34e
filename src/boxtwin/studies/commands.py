"""Command lines for cells that were not run yet, from those of cells that were."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from boxtwin.command_line import command_line

REPLACED = ("split", "split.name", "split.train_size", "variations", "variations.per_image", "seed")


def command(
    typed: str,
    typed_for: str,
    *,
    study: str,
    split: str,
    variations: int,
    generator: str,
    seeds: Sequence[int],
    size: int | None,
) -> str:
    """A command line with another split, number of variations, generator and seeds.

    Args:
        typed: what followed ``python train.py`` for a cell that is like the new ones in everything else, as a shell
            takes it.
        typed_for: the generator of that cell, which may be none that was typed.
        study: for cells that did not say it.
        split, variations, generator, seeds, size: of the new cells; ``size`` is split.train_size.
    """
    overrides = shlex.split(typed)
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    chosen = choice(generator)
    same = chosen[0] in (choice(typed_for)[0], *overrides)
    kept = []
    for key, override in zip(keys, overrides, strict=True):
        # Parameters of another generator would not fit this one, and without variations there is none.
        of_generator = key == "generator" or key.startswith("generator.")
        if key in (word.partition("=")[0] for word in chosen[1:]):
            continue
        if key not in REPLACED and (not of_generator or (variations and same and key != "generator")):
            kept.append(override)
    if variations:
        kept += chosen
    if "study" not in keys:
        kept.append(f"study={study}")
    # A split that has a name only in a file of splits was chosen by its name.
    kept += [f"split.name={split}" if "split.name" in keys else f"split={split}", f"variations={variations}"]
    if size is not None:
        kept.append(f"split.train_size={size}")
    kept.append(f"seed={','.join(map(str, seeds))}")
    return command_line("train.py", [*(["-m"] if len(seeds) > 1 else []), *kept])


def choice(generator: str) -> list[str]:
    """The overrides that choose a generator as `boxtwin.studies.conditions.Row.generator` names it."""
    name, *settings = shlex.split(generator)
    return [f"generator={name}", *(word for word in settings if not word.startswith("store="))]
