"""What to run next, by how much it would narrow the answer, and what it takes."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePath
from typing import Literal

from boxtwin.command_line import command_line, setting
from boxtwin.studies.comparison import Contrast
from boxtwin.studies.condition_names import condition_name
from boxtwin.studies.conditions import CONTROLS, Row, baseline, paired_seeds, setups
from boxtwin.studies.dose_response import LEAST_COUNTS, fit, has_enough_counts, lines, measured_gains
from boxtwin.studies.equivalence import LEAST_SIZES, curve_rows
from boxtwin.studies.inference import LEAST_PAIRS, NORMAL_QUANTILE
from boxtwin.studies.study import Study

METRIC = "map_50"
MORE_SEEDS = 2  # added where there are enough to test for significance: a step small enough to stop after
USUAL_COUNTS = (2, 10, 5, 1, 20)  # numbers of variations to begin with: the case study's, then those between and beyond
MOST = 12  # candidates that are listed
# Of what has no answer at all yet, the lower the sooner; differences that have one come last.
RANKS = {"data": 0, "difference": 1, "condition": 2, "control": 3, "number": 4, "worth": 4}
ANSWERED = 5
REPLACED = ("split", "split.name", "split.train_size", "variations", "variations.per_image", "seed")

Question = Literal["data", "difference", "condition", "control", "number", "worth"]


@dataclass(frozen=True)
class Candidate:
    """Runs that could be added, and the question that they answer. Half widths are of 95 % intervals, AP50 in [0, 1].

    Questions: whether the study detects the effect of more real images (``data``), a difference of the table
    (``difference``), a condition that only another split has (``condition``), a control that is missing (``control``),
    the best number of variations (``number``), and how many real images the synthetic ones are worth (``worth``).
    """

    question: Question
    rank: int
    additions: tuple[tuple[str, int], ...]  # names of conditions, and seeds to run of each
    now: float | None  # half width; None: no answer yet
    after: float | None  # None: cannot be predicted
    minutes: float  # of all runs; nan where nothing alike was run
    command: str
    like: Row  # the condition that runs are added to, or that a new one is like
    variations: int = 0  # of a new condition
    generator: str = ""  # of a new condition
    contrast: Contrast | None = None  # the difference
    floor: float | None = None  # half width that no number of seeds gets below
    best: int | None = None  # the number of variations that is best so far

    @property
    def runs(self) -> int:
        return sum(seeds for _, seeds in self.additions)

    @property
    def narrowing(self) -> float:
        """By how much the interval would shrink; 0 where that is not known."""
        return self.now - self.after if self.now is not None and self.after is not None else 0.0


def plan(study: Study) -> list[Candidate]:
    """Candidates: what has no answer yet first, then by how much intervals would narrow, the cheaper first."""
    planner = _Planner(study)
    candidates = [
        *planner.positive_controls(),
        *planner.more_seeds(),
        *planner.grid(),
        *planner.controls(),
        *planner.counts(),
        *planner.sizes(),
    ]
    candidates.sort(key=lambda c: (c.rank, -c.narrowing, math.inf if math.isnan(c.minutes) else c.minutes))
    return list({candidate.command: candidate for candidate in reversed(candidates)}.values())[::-1][:MOST]


class _Planner:
    def __init__(self, study: Study) -> None:
        self.rows, self.contrasts, self.resampled = study.rows, study.contrasts, study.resampled
        self.setups = setups(study.rows)

    def more_seeds(self) -> Iterator[Candidate]:
        """Pairs that every difference of the table, or every primary one, lacks, or a few more."""
        for contrast in [each for each in self.contrasts if each.kind == "primary"] or self.contrasts:
            new, old, difference = contrast.new, contrast.old, contrast.differences[METRIC]
            both = set(new.seeds) & set(old.seeds)  # on whatever machines
            pairs = len(paired_seeds(new, old))
            lacking = pairs < difference.pairs_needed
            wanted = difference.pairs_needed if lacking else pairs + MORE_SEEDS
            # Seeds that one of the two has already come first.
            pool = dict.fromkeys([*sorted(set(new.seeds) ^ set(old.seeds)), *range(1000)])
            seeds = list(islice((seed for seed in pool if seed not in both), wanted - pairs))
            missing = [(row, [seed for seed in seeds if seed not in row.seeds]) for row in (new, old)]
            parts = [(row, lacks) for row, lacks in missing if lacks]
            interval = difference.interval
            yield Candidate(
                "difference",
                RANKS["difference"] if lacking else ANSWERED,
                tuple((row.name, len(lacks)) for row, lacks in parts),
                interval.half_width if interval and pairs >= LEAST_PAIRS else None,
                interval.after(wanted) if interval else self._expected(wanted),
                math.fsum(len(lacks) * row.minutes for row, lacks in parts),
                " && ".join(self._command(row, lacks, row.variations, row.generator) for row, lacks in parts),
                new,
                contrast=contrast,
                floor=interval.floor if interval and interval.image_variance else None,
            )

    def positive_controls(self) -> Iterator[Candidate]:
        """Real-only runs at another size, where a setup has one size only."""
        for rows in self.setups:
            if any(c.kind == "positive control" and c.new in rows for c in self.contrasts):
                continue
            # Real images alone at the same size come first: half as many would have nothing to be held against.
            alone = [row for row in rows if not row.variations and row.real_images >= 2]  # nan is not
            if alone:
                largest = max(alone, key=lambda row: row.real_images)
                yield self._new("data", largest, size=int(largest.real_images // 2))

    def grid(self) -> Iterator[Candidate]:
        """Conditions that one split has and another has not."""
        for rows in self.setups:
            whole = [row for row in rows if row.first.train_size is None]
            known = {(row.split, row.generator, row.variations) for row in whole}
            for split in dict.fromkeys(row.split for row in whole):
                like = next(row for row in whole if row.split == split)
                for generator, variations in dict.fromkeys((row.generator, row.variations) for row in whole):
                    if (split, generator, variations) not in known:
                        yield self._new("condition", like, variations, generator)

    def controls(self) -> Iterator[Candidate]:
        """Controls that a generator is not compared with, at its largest number of variations."""
        for _, members in self._studied():
            compared = {c.old.first.generator for c in self.contrasts if c.kind == "control" and c.new in members}
            for control in (name for name in CONTROLS if name not in compared):
                yield self._new("control", members[-1], members[-1].variations, control)

    def counts(self) -> Iterator[Candidate]:
        """Numbers of variations beside the best one, or those to begin with."""
        for base, members in self._studied():
            like = members[-1]
            counts = [0, *(member.variations for member in members)]
            if len(counts) < LEAST_COUNTS:
                number = next(n for n in (*USUAL_COUNTS, 2 * counts[-1]) if n not in counts)
                yield self._new("number", like, number, like.generator)
            elif has_enough_counts(base, members):
                gains = measured_gains(METRIC, base, members, self.resampled)
                curve = fit(METRIC, gains)
                number = 2 * counts[-1] if curve.best >= counts[-1] else _beside(curve.best, counts)
                if number in counts:
                    continue
                candidate = replace(self._new("number", like, number, like.generator), after=None, best=curve.best)
                if number < counts[-1]:  # the curve says nothing of larger numbers
                    deviations = curve.narrowing(number, float(gains.noise.diagonal().mean()))
                    now, after = (NORMAL_QUANTILE * each for each in deviations)
                    candidate = replace(candidate, rank=ANSWERED, now=now, after=after)
                yield candidate

    def sizes(self) -> Iterator[Candidate]:
        """Real-only runs at other sizes, for what the synthetic images are worth."""
        for rows in self.setups:
            base = next((base for row in rows if (base := baseline(self.rows, row)) is not None), None)
            curve = [] if base is None else curve_rows(self.rows, base, self.resampled)
            sizes = {row.real_images for row in curve}
            if curve and len(sizes) < LEAST_SIZES:
                largest = max(curve, key=lambda row: (row.real_images, row.first.train_size is None))
                quarters = [round(largest.real_images * share) for share in (0.25, 0.75, 0.5)]
                missing = (q for q in quarters if 0 < q < largest.real_images and q not in sizes)
                for size in islice(missing, LEAST_SIZES - len(sizes)):
                    yield self._new("worth", largest, size=size)

    def _studied(self) -> list[tuple[Row, list[Row]]]:
        """Baselines and conditions of each generator that is no control."""
        return [(base, members) for base, members in lines(self.rows) if not members[-1].is_control]

    def _new(
        self, question: Question, like: Row, variations: int = 0, generator: str = "", size: int | None = None
    ) -> Candidate:
        """A condition that was not run, with as many seeds as a test needs, those of its baseline first."""
        known = (baseline(self.rows, like) or like).seeds
        needed = max(LEAST_PAIRS, len(known))
        seeds = list(islice(dict.fromkeys([*known, *range(1000)]), needed))
        split = like.split if size is None else f"{like.split} ({size} of its images)"
        return Candidate(
            question,
            RANKS[question],
            ((f"{like.prefix}{condition_name(split, variations, generator)}", needed),),
            None,
            self._expected(needed),
            needed * self._minutes(like, variations),
            self._command(like, seeds, variations, generator or like.generator, size),
            like,
            variations,
            generator,
        )

    def _expected(self, pairs: int) -> float | None:
        """Half width that so many pairs give; None where no difference has an interval."""
        intervals = (contrast.differences[METRIC].interval for contrast in self.contrasts)
        # Conditions differ in their noise by less than a few seeds can tell: the middle one's stands for all.
        expected = sorted(interval.expected(pairs) for interval in intervals if interval is not None)
        return expected[len(expected) // 2] if expected else None

    def _minutes(self, like: Row, variations: int) -> float:
        """Of one run: the row's own, or those of the most similar row of its setup with (or without) variations."""
        if variations == like.variations:
            return like.minutes
        rows = [row for row in self.rows if row.condition == like.condition and math.isfinite(row.minutes)]
        alike = [row for row in rows if bool(row.variations) == bool(variations)] or rows
        nearest = min(alike, key=lambda row: (row.split != like.split, abs(row.variations - variations)), default=like)
        return nearest.minutes

    def _command(
        self, like: Row, seeds: Sequence[int], variations: int, generator: str, size: int | None = None
    ) -> str:
        """The command of some runs, from what was typed to get those that are most alike."""
        # Runs of the setup and, with variations, of the generator; those of the split first.
        rows = sorted((r for r in self.rows if r.condition == like.condition), key=lambda row: row.split != like.split)
        alike = [row for row in rows if row.generator == generator] if variations else []
        donors = [(run, row) for row in alike or [like] for run in row.runs]
        donor, donor_row = next((each for each in donors if each[0].overrides), donors[0])
        split: str | None = like.first.split  # without settings that tell it from others of the name
        if like.first.train_size is not None:
            split = like.first.split.removesuffix(f"n{like.first.train_size}")
        typed = donor.overrides
        own = next((run.overrides for run in like.runs if run.overrides), "")
        if typed and donor_row.split == like.split:
            split = None
        elif typed and own:
            typed, split = with_data_of(own, typed), None
        words = _with_own_pretrainings(shlex.split(typed), donor_row)
        typed = shlex.join(words)
        is_whole = like.first.train_size is None and math.isfinite(like.real_images)
        # A file of splits may have another number of images than the configuration says.
        if size is not None and is_whole and _of(words, "split.file") and not _of(words, "split.train"):
            typed = shlex.join([*words, f"split.train={like.real_images:.0f}"])
        return command(
            typed,
            donor.generator,
            study=donor.study,
            split=split,
            variations=variations,
            generator=generator,
            seeds=seeds,
            size=like.first.train_size if size is None else size,
        )


def _beside(best: int, counts: Sequence[int]) -> int:
    """A number not tried yet near the best: itself, or the middle of the wider gap beside it on the axis."""
    if best not in counts:
        return best
    place = list(counts).index(best)
    gaps = [(counts[i], counts[i + 1]) for i in (place - 1, place) if 0 <= i < len(counts) - 1]
    low, high = max(gaps, key=lambda gap: math.log1p(gap[1]) - math.log1p(gap[0]))
    return round(math.expm1((math.log1p(low) + math.log1p(high)) / 2))


def _of(words: Sequence[str], *keys: str) -> list[str]:
    """The words that set one of these keys, or with a dot at its end, one below it."""
    return [
        word
        for word in words
        if any(re.match(rf"\+*{re.escape(key)}{'' if key[-1] == '.' else '='}", word) for key in keys)
    ]


def _with_own_pretrainings(words: Sequence[str], row: Row) -> list[str]:
    """The words of a row's run; if each of its runs has a pre-training of its own, by its seed, new ones have too."""
    seeds = [(run.typed("pretraining.seed"), str(run.seed)) for run in row.runs]
    if any(typed != seed for typed, seed in seeds):
        return list(words)
    return [re.sub(r"^(\+*pretraining\.seed=).*$", r"\g<1>${seed}", word) for word in words]


def with_data_of(own: str, typed: str) -> str:
    """What was ``typed`` for a run, with the data set and the split of another one."""
    keys = ("dataset", "dataset.", "split", "split.")
    words, others = shlex.split(typed), shlex.split(own)
    data = _of(words, *keys)
    return shlex.join([*(word for word in words if word not in data), *_of(others, *keys)])


def command(
    typed: str,
    typed_for: str,
    *,
    study: str,
    split: str | None,
    variations: int,
    generator: str,
    seeds: Sequence[int],
    size: int | None,
) -> str:
    """The command of new runs from what was ``typed`` for a run that is alike in all else, as a shell takes it.

    ``typed_for`` is the generator of that run, which may be none that was typed, ``study`` for runs that did not say
    it, ``size`` the new split.train_size. ``split`` None keeps the split as it was typed, by name or in a file.
    """
    words = {word: word.partition("=")[0].lstrip("+") for word in shlex.split(typed)}
    # Settings that no file has are added with a plus.
    pluses = {key: word[: -len(word.lstrip("+"))] for word, key in words.items() if word[0] == "+"}
    chosen = [_in_typed_folder(word, words) for word in choice(generator)]
    # A pre-training on variations needs what was typed of them, also where none are mixed in afterwards.
    pretrained = "pretraining=variations" in words or "pretraining.per_image" in words.values()
    keeps = pretrained and not variations
    replaced = set() if keeps else {word.partition("=")[0] for word in chosen[1:]}
    replaced |= set(REPLACED if split is not None else REPLACED[2:])
    same = chosen[0] in (choice(typed_for)[0], *words)
    # Parameters of another generator would not fit this one, and without variations there is none.
    dropped = re.compile(r"generator$" if variations and same else r"generator(\.|$)")
    # What a person has confirmed are the labels of another generator's images.
    others_labels = bool(variations) and not same and "labels=manual" in words
    kept = [
        word
        for word, key in words.items()
        if key not in replaced
        and (keeps or not dropped.match(key))
        and not (others_labels and key.split(".")[0] == "labels")
    ]
    if variations:
        kept += [pluses.get(word.partition("=")[0], "") + word for word in chosen]
    if "study" not in words.values():
        kept.append(setting("study", study))
    # A split that has a name only in a file of splits was chosen by its name.
    if split is not None:
        kept.append(setting("split.name" if "split.name" in words.values() else "split", split))
    kept.append(f"variations={variations}")
    if size is not None:
        kept.append(f"split.train_size={size}")
    kept.append(f"seed={','.join(map(str, seeds))}")
    return command_line("train.py", [*(["-m"] if len(seeds) > 1 else []), *kept])


def _in_typed_folder(word: str, typed: Iterable[str]) -> str:
    """A file of labels, which the name of a condition has without its folder, with the folder that was typed."""
    key, _, name = word.partition("=")
    files = (
        [each.partition("=")[2].strip("'\"") for each in _of([*typed], "labels.file")] if key == "labels.file" else []
    )
    return setting(key, str(PurePath(files[-1]).with_name(name.strip("'\"")))) if files else word


def choice(generator: str) -> list[str]:
    """The overrides that choose a generator as `boxtwin.studies.conditions.Row.generator` names it."""
    name, *rest = re.split(r"\s(?='?(?:generator|labels|variations|store)[.=])", generator, maxsplit=1)
    return [setting("generator", name), *overrides_of(" ".join(rest))]


def overrides_of(settings: str) -> list[str]:
    """The overrides that give the settings by which the name of a condition tells it from others."""
    pairs = [word.partition("=") for word in shlex.split(settings)]
    known = ("generator", "labels", "variations", "split")  # and not what follows from which images there are
    return [setting(key, _value(text)) for key, _, text in pairs if key.split(".")[0] in known]


def _value(text: str) -> object:
    """The inverse of `boxtwin.studies.condition_values.flatten` for one value."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if json.dumps(value) == text else text
