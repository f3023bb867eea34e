"""What the primary comparisons of a study answer."""

from __future__ import annotations

from collections.abc import Sequence

from boxtwin.studies.comparison import Contrast
from boxtwin.studies.primary import find_rows
from boxtwin.studies.report.words import paragraphs
from boxtwin.studies.study import Study

AP50 = "map_50"


def primary_answer(study: Study) -> list[str]:
    """A sentence for each primary comparison, what to use for each number of real images by those that gain, and what
    their p are. Other comparisons are in the report."""
    found = {contrast.name: contrast for contrast in study.contrasts if contrast.kind == "primary"}
    missing = {
        each.name: [
            side for side, row in zip(("treatment", "control"), find_rows(study.rows, each), strict=True) if not row
        ]
        for each in study.primary
    }
    comparisons = [
        (place, each.name, found.get(each.name), missing[each.name])
        for place, each in enumerate(study.primary, start=1)
    ]
    gains = sorted(primary_gains(study.contrasts), key=lambda gain: gain.new.estimates[AP50].mean)
    best = {(each.new.first.dataset, each.new.real_images): each for each in gains}
    several = len({dataset for dataset, _ in best}) > 1
    in_words = {each.name: each.treatment_in_words for each in study.primary}
    to_use = [(of, each, in_words[each.name]) for of, each in sorted(best.items())]
    return paragraphs("primary", comparisons=comparisons, best=to_use, several=several)


def primary_gains(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Primary comparisons that show a significant gain, without treatments that lose to something in another one.

    A comparison of different numbers of real images says nothing against the treatment with fewer of them, and nothing
    for the one with more.
    """
    primary = [each for each in contrasts if each.kind == "primary"]
    sure = [
        each for each in primary if each.differences[AP50].significant and each.new.real_images == each.old.real_images
    ]
    worse = {(each.old if each.differences[AP50].mean > 0 else each.new).run_ids for each in sure}
    return [
        each
        for each in primary
        if each.differences[AP50].gain_significant
        and each.new.run_ids not in worse
        and not each.new.real_images > each.old.real_images
    ]
