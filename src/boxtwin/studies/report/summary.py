"""Sentences on a study, made once for the page and the terminal: the answer, every comparison, the notes."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from boxtwin.studies.comparison import EXTRA_IMAGES, Contrast, against_none
from boxtwin.studies.condition_values import DEVICE, not_known_to_all, part, shown
from boxtwin.studies.conditions import Row, baseline, paired_seeds, recorded_values, setups, varied_settings
from boxtwin.studies.next_runs import Candidate
from boxtwin.studies.relabelled import Relabelled
from boxtwin.studies.report.gallery import StoreCards, nearly_empty, store_cards
from boxtwin.studies.report.primary_answer import primary_answer
from boxtwin.studies.report.sections import Section, sections, shows_a_gain
from boxtwin.studies.report.tables import candidates_table, class_text, relabelled_text, text_table
from boxtwin.studies.report.words import paragraphs, sentence
from boxtwin.studies.runs import FINISHED, StudyRun
from boxtwin.studies.study import Study

AP50, AP = "map_50", "map"
KINDS = ("primary", "variations", "pretraining", "equal pixels", *EXTRA_IMAGES, "control", "positive control")
COMPARED_SETTINGS = ("pretraining", *EXTRA_IMAGES.values())  # of the setup: conditions that differ in them are compared
LEAST_AP50 = 0.05  # of the best condition; below it detectors find next to nothing, and differences say nothing
NOTED = ("boxtwin", "torch", "cuda", "threads")  # what may differ under the same recipe; commit and machine aside


@dataclass(frozen=True)
class Summary:
    """Sentences and pictures of a study; ``candidates`` is None where nobody asked for a plan."""

    in_short: list[str]
    answer: list[str]
    comparisons: list[str]
    notes: list[str]
    sections: list[Section]
    stores: Sequence[StoreCards]
    candidates: Sequence[Candidate] | None = None

    @classmethod
    def of(cls, study: Study, candidates: Sequence[Candidate] | None = None) -> Summary:
        """Put a study into words."""
        primary, stores = primary_answer(study) if study.primary else [], store_cards(study)
        return cls(
            primary or in_short(study.rows, study.contrasts),
            primary or answer(study.rows, study.contrasts),
            verdict(study.rows, study.contrasts),
            notes(study.runs, study.rows, primary=bool(study.primary), empty=nearly_empty(stores)),
            sections(study, candidates),
            stores,
            candidates,
        )


def printed(study: Study, summary: Summary, others: Sequence[Relabelled] = (), *, brief: bool = False) -> str:
    """What `compare.py` prints: the table, the answer, and what was asked for besides; all else is in the report.

    With ``brief`` the answer is a sentence for each of its parts, or the primary comparisons alone, and comes last;
    classes and notes are left out.
    """
    blocks = [
        [f"study {study.name}: {len(study.runs)} runs"],
        text_table(study.rows, study.contrasts),
        [sentence("table_note")] if any(len(row.seeds) > 1 for row in study.rows) else [],
        # Sentences on every single comparison are in the report, unless there is nothing shorter to say.
        *([] if brief else [class_text(study.by_class), summary.answer or summary.comparisons, summary.notes]),
    ]
    for each in others:
        blocks.append([sentence("relabelled_title", each=each), *paragraphs("relabelled", each=each, brief=brief)])
        blocks.append(relabelled_text(each))
    if summary.candidates is not None and summary.sections:
        blocks += [[summary.sections[-1].title, *summary.sections[-1].sentences], candidates_table(summary.candidates)]
    if study.unfinished:
        blocks.append([f"Not in the table: {', '.join(f'{run.name} ({run.status})' for run in study.unfinished)}"])
    if brief:
        blocks.append(summary.in_short or summary.comparisons)
    return "\n\n".join("\n".join(block) for block in blocks if block)


@dataclass(frozen=True)
class Answer:
    """What a study answers for one setup; the dictionaries hold the values that their sentences name."""

    prefix: str
    groups: list[dict[str, Any]]  # of a generator on a split: lead, others, controls, ap
    pretrainings: list[tuple[Contrast, Contrast | None]]  # against none, and against as many pixels of real images
    extra_images: list[Contrast]  # against none
    positive_controls: list[Contrast]
    advice: dict[str, Any]  # empty where no variations are compared with none
    sees_gains: bool  # whether anything that was tried gains significantly
    advised_for: str  # the prefix, or nothing where no other setup has another advice


def beaten_by_pixels(equal_pixels: Contrast | None) -> bool:
    """Whether as many pixels of real images are significantly better than a pre-training."""
    return equal_pixels is not None and _is_loss(equal_pixels)


def _is_loss(contrast: Contrast) -> bool:
    return contrast.differences[AP50].significant and contrast.differences[AP50].mean < 0


def answer(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """For each setup: a paragraph for every split and generator, pre-training, images beside the data set, the positive
    control, what to do."""
    return [text for each in answers(rows, contrasts) for text in paragraphs("answer", **vars(each))]


def in_short(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """For each setup a sentence for every split and generator, the positive control, and what to do."""
    return [text for each in answers(rows, contrasts) for text in paragraphs("in_short", **vars(each))]


def answers(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[Answer]:
    """The values of `answer` for each setup with comparisons; a control has a paragraph of its own only where no other
    generator has as many variations."""
    values_by_setup = []
    for setup in setups(rows):
        alike = [contrast for contrast in contrasts if contrast.new in setup]
        by_kind = {kind: [contrast for contrast in alike if contrast.kind == kind] for kind in KINDS}
        gains, controls, positive = (by_kind[kind] for kind in ("variations", "control", "positive control"))
        equal_pixels = {contrast.new.run_ids: contrast for contrast in by_kind["equal pixels"]}
        pretrainings = [(each, equal_pixels.get(each.new.run_ids)) for each in by_kind["pretraining"]]
        subjects = [gain for gain in gains if not gain.new.is_control] or gains
        groups = _groups(subjects)
        leads = [_lead(group) for group in groups]
        values = [_of_generator(lead, group, controls, gains) for lead, group in zip(leads, groups, strict=True)]
        # Controls of which no number of variations stands beside a lead: they are in no sentence on a generator.
        beside = {line_of(control.old) for value in values for control, _ in value["controls"]}
        alone = [each for each in gains if each not in subjects and line_of(each.new) not in beside]
        values += [_of_generator(_lead(group), group, [], gains) for group in _groups(alone)]
        extra = [contrast for kind in EXTRA_IMAGES for contrast in by_kind[kind]]
        # What may be advised beside them. `repeat` shows what steps bring: it is no treatment.
        others = [each for each in gains if each not in subjects and each.new.generator != "repeat"]
        treatments = [*map(_lead, _groups(others)), *by_kind["pretraining"], *extra]
        beaten = [control for _, control in pretrainings if control is not None and _is_loss(control)]
        sees_gains = shows_a_gain(alike)
        advice = {}
        if leads or treatments:
            advice = _advice(leads, subjects, [*controls, *beaten], positive, treatments, sees_gains=sees_gains)
        if (best := max(row.estimates[AP50].mean for row in setup)) < LEAST_AP50:
            advice = {"kind": "untrained", "best": best, "steps": max(row.first.steps for row in setup)}
        if groups or pretrainings or extra or positive:
            prefix = setup[0].prefix
            values_by_setup.append(
                Answer(prefix, values, pretrainings, extra, positive, advice, sees_gains, advised_for=prefix)
            )
    advised = [place for place, each in enumerate(values_by_setup) if each.advice]
    first = values_by_setup[advised[0]].advice if advised else {}
    # Words of other kinds of advice follow from the setup's other comparisons too.
    is_same = first.get("kind") == "seeds" and all(values_by_setup[place].advice == first for place in advised)
    if len(advised) == 1 or is_same:
        for place, each in enumerate(values_by_setup):  # once, after the last, and for all setups
            once = each.advice if place in advised[-1:] else {}
            values_by_setup[place] = replace(each, advice=once, advised_for="")
    return values_by_setup


def verdict(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """A sentence or two per comparison: against none, against controls, and what more real data brings."""
    primary = {(each.new.run_ids, each.old.run_ids) for each in contrasts if each.kind == "primary"}
    compared = {*against_none(contrasts), *(new for new, _ in primary)}
    # A primary comparison is one of another kind as well, with the same numbers.
    once = [each for each in contrasts if each.kind == "primary" or (each.new.run_ids, each.old.run_ids) not in primary]
    return paragraphs(
        "comparisons",
        rows=rows,
        alone=[(row, obstacles(rows, row)) for row in rows if row.variations and row.run_ids not in compared],
        # What the study is about comes before its controls.
        contrasts=sorted(once, key=lambda each: (KINDS.index(each.kind), not each.name and each.new.is_control)),
    )


def _groups(gains: Sequence[Contrast]) -> list[list[Contrast]]:
    """By split and generator."""
    ordered = sorted(gains, key=lambda gain: line_of(gain.new))
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda gain: line_of(gain.new))]


def line_of(row: Row) -> tuple[str, str]:
    """Split and generator."""
    return row.split, row.generator


def _lead(group: Sequence[Contrast]) -> Contrast:
    """The number of variations to name first: the best gain that is significant, or else the largest number of those
    with enough seeds; where none has enough, of those with most."""
    sure = [gain for gain in group if gain.differences[AP50].gain_significant]
    if sure:
        return max(sure, key=lambda gain: gain.differences[AP50].mean)

    def rank(gain: Contrast) -> tuple[int, int]:
        change = gain.differences[AP50]
        return min(change.pairs, change.pairs_needed), gain.new.variations

    return max(group, key=rank)


def _of_generator(
    lead: Contrast, group: Sequence[Contrast], controls: Sequence[Contrast], gains: Sequence[Contrast]
) -> dict[str, Any]:
    of_control = {gain.new.run_ids: gain.differences[AP50] for gain in gains}
    return {
        "lead": lead,
        "others": [gain for gain in group if gain is not lead],
        "controls": [(each, of_control[each.old.run_ids]) for each in controls if each.new.run_ids == lead.new.run_ids],
        # AP may be significant where AP50 is not.
        "ap": next((gain for gain in group if gain.differences[AP].significant), lead),
    }


def _advice(
    leads: Sequence[Contrast],
    subjects: Sequence[Contrast],
    controls: Sequence[Contrast],
    positive: Sequence[Contrast],
    treatments: Sequence[Contrast],
    *,
    sees_gains: bool,
) -> dict[str, Any]:
    """What to do, as the kind of advice and the values that its sentence names.

    ``controls`` hold the same number of variations by a control, or as many pixels of real images, against a treatment.
    ``treatments`` are what else is held against none: `copy_paste` beside a diffusion model, pre-training, images
    beside the data set. One of them is advised where it gains and no number of variations does, or gains more.
    """
    decided = [each for each in (*leads, *treatments) if each.differences[AP50].could_be_significant]
    known = [contrast.differences[AP50] for contrast in positive]
    seen = [change.mean for change in known if change.gain_significant]
    blind = bool(known) and not (seen or sees_gains) and all(change.could_be_significant for change in known)
    if not decided:
        changes = [each.differences[AP50] for each in (*leads, *treatments)]
        needed = sorted(change.pairs_needed for change in changes)
        pairs = min(change.pairs for change in changes)
        return {"kind": "seeds", "blind": blind, "least": needed[0], "most": needed[-1], "pairs": pairs}
    wins = [each for each in decided if each.differences[AP50].gain_significant]
    if wins:
        winners = {win.new.run_ids for win in wins}
        # Controls with enough runs to tell, and those that are significantly better than what they are held against.
        held = [
            each for each in controls if each.new.run_ids in winners and each.differences[AP50].could_be_significant
        ]
        of_winners = [each for each in controls if each.kind == "control" and each.new.run_ids in winners]
        few = [each for each in of_winners if not each.differences[AP50].could_be_significant]
        better = list(filter(_is_loss, held))
        beaten = {each.new.run_ids for each in better}
        compared = [each for each in held if each.new.run_ids not in beaten]
        equal = {line_of(each.old) for each in compared if not each.differences[AP50].significant}
        gaining = [win for win in wins if win.new.run_ids not in beaten]
        if not gaining:
            steps = sorted({each.old.first.steps for each in better if each.kind == "equal pixels"})
            by = sorted({each.old.generator for each in better if each.kind == "control"})
            return {"kind": "beaten", "beaten": wins, "by": by, "steps": steps}
        several = len({win.new.split for win in gaining}) > 1
        named = [win for win in gaining if line_of(win.new) not in equal or win.kind != "variations"]
        return {
            "kind": "use",
            "wins": sorted(named, key=lambda win: -win.differences[AP50].mean),
            "gaining": gaining,
            "without_controls": not of_winners and any(win in leads and not win.new.is_control for win in wins),
            "few_controls": {
                "names": sorted({each.old.generator for each in few}),
                "seeds": max(each.differences[AP50].pairs_needed for each in few),
            }
            if few
            else {},
            "equal": [f"{generator} on {split}" if several else generator for split, generator in sorted(equal)],
            "data": max(seen, default=None),
        }
    losses = [each for each in decided if each.differences[AP50].significant]
    if losses and len(losses) == len(decided):
        return {"kind": "loss", "losses": losses}
    beside = {"losses": losses} if losses else {}
    if blind:
        return {"kind": "blind", **beside}
    highs = [interval.high for gain in subjects if (interval := gain.differences[AP50].interval) is not None]
    if (
        seen
        and len(highs) == len(subjects) > 0
        and len(decided) == len(leads) + len(treatments)
        and max(highs) < min(seen) / 2
    ):
        tighter = [gain.differences[AP].mean for gain in subjects if gain.differences[AP].significant]
        bounds = {"ap": max(tighter, default=0.0), "bound": max(*highs, 0.0), "data": min(seen)}
        return {"kind": "little", **bounds, **beside}
    return {"kind": "open", **beside}


def notes(
    all_runs: Sequence[StudyRun],
    rows: Sequence[Row],
    *,
    primary: bool = False,
    empty: Sequence[tuple[str, int, int]] = (),
) -> list[str]:
    """One sentence for each thing that a reader of the table must know and that is no column of it.

    ``empty`` are stores of variations that have hardly any boxes (`nearly_empty`).
    """
    finished = [run for run in all_runs if run.status == FINISHED]
    committed = [run.provenance for run in finished if run.provenance.get("commit", "null") != "null"]
    commits = Counter(
        each["commit"][:8] + ("" if each.get("clean") == "true" else " with changes") for each in committed
    )
    versions = {name: Counter(run.provenance[name] for run in finished if name in run.provenance) for name in NOTED}
    machines = Counter(run.machine or "not recorded" for run in finished)
    return paragraphs(
        "notes",
        empty=empty,
        settings=[each for each in varied_settings(rows) if each.split(".")[0] not in (*COMPARED_SETTINGS, DEVICE)],
        by_device=any(DEVICE in row.values for row in rows),
        alone=all(row.alone for row in rows),
        primary=primary,
        several=any(len(row.seeds) > 1 for row in rows),
        pretrainings=sorted(
            {(row.pretrainings, len(row.seeds)) for row in rows if row.pretrainings and len(row.seeds) > 1}
        ),
        mixed=_unequal_variations(rows),
        same_images=_splits_of_same_images(rows),
        unpaired=_unpaired(rows),
        unknown=sorted(not_known_to_all(recorded_values(finished))),
        unrecorded=len(finished) - len(committed),
        runs=len(finished),
        commits=commits if len(commits) > 1 or any(" " in commit for commit in commits) else {},
        versions={name: counts for name, counts in versions.items() if len(counts) > 1},
        machines=machines if len(machines) > 1 else {},
    )


def obstacles(rows: Sequence[Row], row: Row) -> dict[str, tuple[str, str]]:
    """Where the nearest runs without variations differ from a row, as ``(theirs, its own)`` by setting; empty: none."""
    apart: list[dict[str, tuple[str, str]]] = []
    for other in (other for other in rows if not other.variations):
        theirs, ours = ({**part(each.values, "setup"), **part(each.values, "split")} for each in (other, row))
        keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
        apart.append({key: (shown(key, theirs.get(key)), shown(key, ours.get(key))) for key in keys})
    return min(apart, key=len, default={})


def _unequal_variations(rows: Sequence[Row]) -> list[tuple[Row, int, int]]:
    """Conditions whose seeds were trained on different numbers of variations, with the least and the greatest."""
    found = []
    for row in rows:
        numbers = {
            int(run.metrics["data/synthetic_images"]) for run in row.runs if "data/synthetic_images" in run.metrics
        }
        if len(numbers) > 1:
            found.append((row, min(numbers), max(numbers)))
    return found


def _splits_of_same_images(rows: Sequence[Row]) -> list[list[str]]:
    """Names of splits that have the same images on every side, and so repeat each other's runs."""
    splits: dict[tuple[str | None, ...], dict[str, None]] = defaultdict(dict)
    for row in rows:
        images = tuple(row.values.get(f"data.{side}") for side in ("train", "val", "test"))
        if all(images):
            splits[images][row.values.get("split.name", row.split)] = None
    return [list(names) for names in splits.values() if len(names) > 1]


def _unpaired(rows: Sequence[Row]) -> list[tuple[Row, list[int]]]:
    """Seeds that a condition shares with its baseline, run on different kinds of device or in different precision."""
    pairs = [(row, base) for row in rows if (base := baseline(rows, row)) is not None]
    apart = [(row, sorted({*row.seeds} & {*base.seeds} - {*paired_seeds(row, base)})) for row, base in pairs]
    return [(row, seeds) for row, seeds in apart if seeds]
