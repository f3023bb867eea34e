"""What to run next, by how much it would narrow the answer, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from boxtwin.studies.commands import command
from boxtwin.studies.comparison import CONTROLS, Contrast, Figures
from boxtwin.studies.conditions import Row, baseline, paired_seeds, prefixes
from boxtwin.studies.dose_response import LEAST_COUNTS, can_bend, fit, lines, tried
from boxtwin.studies.equivalence import LEAST_SIZES, curve_rows
from boxtwin.studies.inference import LEAST_PAIRS, LEVEL, Noise, after_more, least, noise_of
from boxtwin.studies.runs import FINISHED, Cell

FIGURE = "map_50"
MORE_SEEDS = 2  # where there are enough for a verdict: a step small enough to stop after
USUAL_COUNTS = (2, 10, 5, 1, 20)  # numbers of variations to begin with: the case study's, then those between and beyond
MOST = 12  # candidates that are listed


@dataclass(frozen=True)
class Candidate:
    """Runs that could be added, and what they would settle. Half widths are of 95 % intervals, AP50 in [0, 1]."""

    what: str
    settles: str
    first: int  # rank of what has no answer at all yet: the lower, the sooner
    now: float | None  # half width; None: no answer yet
    after: float | None  # None: cannot be foretold
    runs: int
    minutes: float  # of all runs; nan where nothing alike was run
    command: str

    @property
    def narrowing(self) -> float:
        """By how much the interval would shrink; infinite where there is none yet."""
        if self.now is None:
            return math.inf
        return self.now - self.after if self.after is not None else 0.0


def plan(
    cells: Sequence[Cell], rows: Sequence[Row], contrasts: Sequence[Contrast], figures: Figures
) -> list[Candidate]:
    """Candidates: what has no answer yet first, then by how much intervals would narrow, the cheaper first."""
    planner = _Planner(cells, rows, contrasts, figures)
    found = [
        *planner.yardsticks(), *planner.more_seeds(), *planner.grid(), *planner.controls(), *planner.counts(),
        *planner.sizes(),
    ]  # fmt: skip
    found.sort(key=lambda c: (c.first, -c.narrowing if math.isfinite(c.narrowing) else 0.0, _or_last(c.minutes)))
    return list({candidate.command: candidate for candidate in reversed(found)}.values())[::-1][:MOST]


class _Planner:
    def __init__(
        self, cells: Sequence[Cell], rows: Sequence[Row], contrasts: Sequence[Contrast], figures: Figures
    ) -> None:
        self.cells = [cell for cell in cells if cell.status == FINISHED]
        self.rows, self.contrasts, self.figures = rows, contrasts, figures
        self.name = prefixes(rows)
        self.conditions = list(dict.fromkeys(row.condition for row in rows))

    def more_seeds(self) -> list[Candidate]:
        """Pairs that every difference of the table lacks, or a few more."""
        found = []
        for contrast in self.contrasts:
            difference = contrast.differences[FIGURE]
            both = set(contrast.new.seeds) & set(contrast.old.seeds)  # on whatever machines
            shared = paired_seeds(contrast.new, contrast.old)
            needed = difference.pairs_needed
            wanted = needed if len(shared) < needed else len(shared) + MORE_SEEDS
            # Seeds that one of the two has already come first.
            pool = [*sorted(set(contrast.new.seeds) ^ set(contrast.old.seeds)), *range(1000)]
            new = [seed for seed in dict.fromkeys(pool) if seed not in both][: wanted - len(shared)]
            lacks = [(row, [s for s in new if s not in row.seeds]) for row in (contrast.new, contrast.old)]
            parts = [(row, seeds) for row, seeds in lacks if seeds]
            now, after = self._narrowing(contrast, wanted)
            what = "; ".join(
                f"{self._said(row)}: {len(seeds)} more {'seed' if len(seeds) == 1 else 'seeds'}" for row, seeds in parts
            )
            settles = self._contrast_said(contrast)
            if len(shared) < needed:
                settles += f", which needs {needed} pairs for a verdict"
            if difference.interval is not None and difference.interval.image_variance:
                floor = least(difference.interval, difference.pairs, len(self.figures.images(contrast.new.runs[0])))
                settles += f" (seeds alone cannot get below ±{points(floor)}: more test images would)"
            found.append(
                Candidate(
                    what,
                    settles,
                    1 if len(shared) < needed else 5,
                    now if len(shared) >= LEAST_PAIRS else None,
                    after,
                    sum(len(seeds) for _, seeds in parts),
                    math.fsum(len(seeds) * self._minutes(row) for row, seeds in parts),
                    " && ".join(self._command(row, seeds) for row, seeds in parts),
                )
            )
        return found

    def yardsticks(self) -> list[Candidate]:
        """Real-only runs at another size, where a condition has one size only."""
        found = []
        for condition in self.conditions:
            if any(c.kind == "yardstick" and c.new.condition == condition for c in self.contrasts):
                continue
            alike = [row for row in self.rows if row.condition == condition]
            largest = max(alike, key=lambda row: row.real_images if math.isfinite(row.real_images) else 0.0)
            if not math.isfinite(largest.real_images) or largest.real_images < 2:
                continue
            half = int(largest.real_images // 2)
            found.append(
                self._new(
                    largest,
                    f"{self.name(largest)}{largest.split}: a yardstick, {half} of its {largest.real_images:g} real "
                    "images alone",
                    "whether this set-up can see what data is worth",
                    0,
                    variations=0,
                    size=half,
                )
            )
        return found

    def grid(self) -> list[Candidate]:
        """Conditions that one split has and another has not."""
        found = []
        for condition in self.conditions:
            alike = [row for row in self.rows if row.condition == condition and row.train_size is None]
            there = {(row.split, row.generator, row.variations) for row in alike}
            splits = dict.fromkeys(row.split for row in alike)
            for split in splits:
                sample = next(row for row in alike if row.split == split)
                for generator, variations in dict.fromkeys((row.generator, row.variations) for row in alike):
                    if (split, generator, variations) in there:
                        continue
                    what = f"{self.name(sample)}{split}, {_named(variations, generator)}"
                    settles = (
                        f"what {_named(variations, generator)} bring on {split}"
                        if variations
                        else "what all are held against"
                    )
                    found.append(self._new(sample, what, settles, 2, variations=variations, generator=generator))
        return found

    def controls(self) -> list[Candidate]:
        """Controls that a generator is not held against, at its largest number of variations."""
        found = []
        for _, members in lines(self.rows):
            row = members[-1]
            if row.generator_name in CONTROLS:
                continue
            for control in CONTROLS:
                if any(
                    c.kind == "control" and c.new in members and c.old.generator_name == control for c in self.contrasts
                ):
                    continue
                found.append(
                    self._new(
                        row,
                        f"{self.name(row)}{row.split} with {row.variations} of {control}",
                        f"whether {row.generator} is more than more of the same",
                        3,
                        variations=row.variations,
                        generator=control,
                    )
                )
        return found

    def counts(self) -> list[Candidate]:
        """Numbers of variations beside the best one, or those to begin with."""
        found = []
        for base, members in lines(self.rows):
            row = members[-1]
            if row.generator_name in CONTROLS:
                continue
            title = f"{self.name(row)}{row.split}, {row.generator}"
            counts = [0, *(member.variations for member in members)]
            if len(counts) < LEAST_COUNTS:
                number = next(n for n in (*USUAL_COUNTS, 2 * counts[-1]) if n not in counts)
                settles = "how many variations are best: fewer than three numbers cannot say"
                found.append(self._new(row, f"{title}: x{number}", settles, 4, variations=number,
                                       generator=row.generator))  # fmt: skip
                continue
            if not can_bend(base, members):
                continue
            measured = tried(FIGURE, base, members, self.figures)
            curve = fit(FIGURE, measured)
            noise = float(measured.noise.diagonal().mean())
            number = 2 * counts[-1] if curve.best >= counts[-1] else _beside(curve.best, counts)
            if number in counts:
                continue
            if number > counts[-1]:
                now, after = None, None  # the curve says nothing of what lies outside of it
            else:
                now, after = (float(stats.norm.ppf((1 + LEVEL) / 2)) * each for each in curve.narrowing(number, noise))
            settles = f"how many variations are best (now about {curve.best})"
            found.append(
                self._new(
                    row,
                    f"{title}: {number} variation{'' if number == 1 else 's'}",
                    settles,
                    4 if now is None else 5,
                    variations=number,
                    generator=row.generator,
                    widths=(now, after),
                )
            )
        return found

    def sizes(self) -> list[Candidate]:
        """Real-only runs at other sizes, for what the synthetic images are worth."""
        found = []
        for condition in self.conditions:
            alike = [row for row in self.rows if row.condition == condition]
            bases = [base for row in alike if row.variations and (base := baseline(self.rows, row)) is not None]
            if not bases:
                continue
            curve = curve_rows(self.rows, bases[0], self.figures)
            sizes = {row.real_images for row in curve}
            if not curve or len(sizes) >= LEAST_SIZES:
                continue
            largest = max(curve, key=lambda row: (row.real_images, row.train_size is None))
            quarters = [round(largest.real_images * share) for share in (0.25, 0.75, 0.5)]
            for size in [q for q in quarters if 0 < q < largest.real_images and q not in sizes][
                : LEAST_SIZES - len(sizes)
            ]:
                what = f"{self.name(largest)}{largest.split}: {size} of the real images alone"
                settles = "how many real images the synthetic ones are worth"
                found.append(self._new(largest, what, settles, 4, variations=0, size=size))
        return found

    def _new(
        self,
        like: Row,
        what: str,
        settles: str,
        first: int,
        *,
        variations: int,
        generator: str | None = None,
        size: int | None = None,
        widths: tuple[float | None, float | None] | None = None,
    ) -> Candidate:
        """A condition that was not run, with as many seeds as a verdict needs, those of its baseline first."""
        base = baseline(self.rows, like)
        own = (base or like).seeds
        needed = max(LEAST_PAIRS, len(own))
        seeds = [*own, *(seed for seed in range(1000) if seed not in own)][:needed]
        if widths is None:
            noises = [noise for contrast in self.contrasts if (noise := self._noise(contrast)) is not None]
            # Conditions differ in their noise by less than a few seeds can tell: the middle one's stands for all.
            expected = sorted(noise.half_width(needed) for noise in noises)
            widths = None, expected[len(expected) // 2] if expected else None
        return Candidate(
            f"{what}, {needed} seeds",
            settles,
            first,
            *widths,
            needed,
            needed * self._minutes(like, variations),
            self._command(like, seeds, variations=variations, generator=generator, size=size),
        )

    def _noise(self, contrast: Contrast) -> Noise | None:
        difference = contrast.differences[FIGURE]
        if difference.interval is None:
            return None
        return noise_of(difference.interval, difference.pairs, len(self.figures.images(contrast.new.runs[0])))

    def _narrowing(self, contrast: Contrast, wanted: int) -> tuple[float | None, float | None]:
        difference = contrast.differences[FIGURE]
        if difference.interval is None:
            noises = [noise for other in self.contrasts if (noise := self._noise(other)) is not None]
            expected = sorted(noise.half_width(wanted) for noise in noises)
            return None, expected[len(expected) // 2] if expected else None
        images = len(self.figures.images(contrast.new.runs[0]))
        now = (difference.interval.high - difference.interval.low) / 2
        return now, after_more(difference.interval, difference.pairs, wanted - difference.pairs, images)

    def _minutes(self, like: Row, variations: int | None = None) -> float:
        """Of one run: the row's own, or what rows of its condition with (or without) variations took in the middle."""
        if variations is None or variations == like.variations:
            return like.minutes
        rows = [row for row in self.rows if row.condition == like.condition and math.isfinite(row.minutes)]
        alike = [row for row in rows if bool(row.variations) == bool(variations)] or rows
        if not alike:
            return math.nan
        return min(alike, key=lambda row: (row.split != like.split, abs(row.variations - variations))).minutes

    def _said(self, row: Row) -> str:
        return f"{self.name(row)}{row.split}, {_named(row.variations, row.generator)}"

    def _contrast_said(self, contrast: Contrast) -> str:
        new, old = contrast.new, contrast.old
        if contrast.kind == "variations":
            return f"what {_named(new.variations, new.generator)} bring on {new.split}"
        if contrast.kind == "control":
            return f"whether {new.generator} beats {old.generator} on {new.split}"
        return f"what {new.real_images:g} instead of {old.real_images:g} real images bring"

    def _command(
        self,
        like: Row,
        seeds: Sequence[int],
        *,
        variations: int | None = None,
        generator: str | None = None,
        size: int | None = None,
    ) -> str:
        """The command of some runs, from what was typed to get those that are most alike."""
        variations = like.variations if variations is None else variations
        generator = like.generator if generator is None else generator
        by_run = {cell.run_id: cell for cell in self.cells}
        donors = [by_run[run] for run in self._runs_like(like, generator, variations)]
        donor = next((cell for cell in donors if cell.overrides), donors[0])
        typed_there = donor.overrides and any(donor.run_id in row.runs for row in self.rows if row.split == like.split)
        size = like.train_size if size is None else size
        filed = by_run[like.runs[0]].split  # without settings that tell it from others of the name
        split = filed if like.train_size is None else filed.removesuffix(f"n{like.train_size}")
        return command(
            donor.overrides,
            donor.generator,
            study=donor.study,
            split=None if typed_there else split,
            variations=variations,
            generator=generator,
            seeds=seeds,
            size=size,
        )

    def _runs_like(self, like: Row, generator: str, variations: int) -> list[str]:
        """Runs of the condition and, with variations, the generator; those of the split first."""
        rows = [row for row in self.rows if row.condition == like.condition]
        rows.sort(key=lambda row: row.split != like.split)
        same = [row for row in rows if row.generator == generator] if variations else []
        return [run for row in (same or [like]) for run in row.runs]


def _or_last(minutes: float) -> float:
    return math.inf if math.isnan(minutes) else minutes


def _named(variations: int, generator: str) -> str:
    if not variations:
        return "no variations"
    return f"{variations} variation{'' if variations == 1 else 's'} ({generator})"


def _beside(best: int, counts: Sequence[int]) -> int:
    """A number not tried yet near the best: itself, or the middle of the wider gap beside it on the axis."""
    if best not in counts:
        return best
    place = list(counts).index(best)
    gaps = [(counts[i], counts[i + 1]) for i in (place - 1, place) if 0 <= i < len(counts) - 1]
    low, high = max(gaps, key=lambda gap: math.log1p(gap[1]) - math.log1p(gap[0]))
    return round(math.expm1((math.log1p(low) + math.log1p(high)) / 2))


def points(value: float) -> str:
    """A share in points of a percent, one decimal."""
    return f"{100 * value:.1f}"
