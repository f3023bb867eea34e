"""The runs of a study, and reading them back from their folders."""

from __future__ import annotations

import hashlib
import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from types import MappingProxyType

from boxtwin.command_line import typed_values, words_of
from boxtwin.config.identity import WITHOUT, current_name
from boxtwin.errors import InputError
from boxtwin.evaluation.examples import EXAMPLES_FILE
from boxtwin.evaluation.resampled_ap import MATCHES_FILE
from boxtwin.studies.condition_values import Values, flatten
from boxtwin.studies.evidence import Evidence
from boxtwin.tracking.run_folders import RESULT_FILE, RunResult, read_result

log = logging.getLogger(__name__)

FINISHED = "FINISHED"  # MLflow's word
DAMAGED = "DAMAGED"  # a finished run whose matches cannot be read, here or in MLflow; train.py runs it again
NO_GENERATOR = "none"  # what a run without variations is filed under
# What reading a record meets in values that are missing, or are not what they should be.
BROKEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
LABEL_CARD, QUALITY_CARD = "label_card", "quality_card"  # .json and .png in the folder of a run
# What the report reads beside the evidence. Runs of older versions keep the second card with their run only.
CARD_FILES = tuple(f"{card}{ending}" for card in (LABEL_CARD, QUALITY_CARD) for ending in (".json", ".png"))
SHOWN_FILES = (EXAMPLES_FILE, *CARD_FILES)
NO_COPIES: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True)
class StudyRun:
    """One run: what was trained on what, and how it did on the test images. ``metrics`` are named as in MLflow."""

    study: str
    dataset: str
    split: str
    variations: int
    generator: str  # `NO_GENERATOR` where variations is 0
    detector: str
    seed: int
    steps: int
    setting: str  # short hash of everything else that was configured
    metrics: dict[str, float]
    run_id: str
    minutes: float
    output_dir: str
    status: str
    overrides: str = ""  # what was typed after `python train.py`, as a shell takes it
    store: str = ""  # name of the store of its variations; empty: none, or not recorded
    train_size: int | None = None  # where only some of the split's training images were used; `split` names it too
    pretraining_seed: int | None = None  # None without pre-training; runs of equal seed start from the same detector
    labels: str = ""  # how those of its variations were found
    validation: tuple[tuple[int, float], ...] = ()  # step, AP on the real validation images
    condition: Values = field(default_factory=dict)  # every setting that defines it but the seed; empty: not recorded
    data: str = ""  # hash of the whole data set with its labels; empty: not recorded
    images: str = ""  # hash of the images of its split, without their labels; empty: not recorded
    test: str = ""  # hash of the names of its test images; empty: not recorded
    classes: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # test metrics by name of the class
    provenance: Values = field(default_factory=dict)  # commit, versions, device, precision; empty: not recorded

    @property
    def name(self) -> str:
        """The run's name in MLflow."""
        return f"{self.split}-x{self.variations}-{self.generator}-{self.detector}-seed{self.seed}"

    @property
    def label_file(self) -> str:
        """The name of its file of confirmed labels, as typed on the command line; empty without one."""
        return self._typed_name("labels.file")

    @property
    def names_of_data(self) -> dict[str, str]:
        """The names of annotations and folder of its data set, as far as they were typed."""
        names = {key: self._typed_name(key) for key in ("dataset.annotations", "dataset.root")}
        return {key: name for key, name in names.items() if name}

    @property
    def label_names(self) -> tuple[tuple[str, str], ...]:
        """`names_of_data` as one value. Annotations have their folder: versions often have one name in several."""
        folder = PurePath(self.typed("dataset.annotations") or "").parent.name
        return (*sorted(self.names_of_data.items()), *((("folder", folder),) if folder else ()))

    def typed(self, key: str) -> str | None:
        """The value of a setting on the command line; None where it was not typed."""
        return typed_values(shlex.split(self.overrides)).get(key)

    def _typed_name(self, key: str) -> str:
        """The last part of the path that was typed for a setting; empty for none."""
        return PurePath(self.typed(key) or "").name

    @property
    def machine(self) -> str:
        """Kind of device and precision, on which two runs must agree to be a pair; empty where not recorded."""
        parts = (self.provenance.get("device", ""), self.provenance.get("precision", ""))
        return " ".join(parts) if all(parts) else ""


def find_file(run: StudyRun, name: str, copies: Mapping[str, Path] = NO_COPIES) -> Path | None:
    """A file of a run, from its folder or the one in ``copies``, which is by run id; None if it keeps none."""
    folders = [Path(run.output_dir)] if run.output_dir else []
    if run.run_id in copies:
        folders += [copies[run.run_id], copies[run.run_id] / "store"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def runs_in(*folders: Path) -> list[StudyRun]:
    """The finished runs whose folders lie in ``folders``, or are these; a run that several of them hold is taken once.

    Raises `InputError` if a folder has none, or two folders hold a run with different test metrics.
    """
    runs, repeated = [], 0
    first: dict[tuple[str, str], StudyRun] = {}  # of each identity on each kind of device
    for number, folder in enumerate(folders, start=1):
        found = 0
        for file in sorted([*folder.glob(RESULT_FILE), *folder.glob(f"*/{RESULT_FILE}")]):
            run_id = file.parent.name if len(folders) == 1 else f"{number}/{file.parent.name}"
            try:
                result = read_result(file.parent)
                if result is None:
                    raise ValueError("it is cut, or no JSON")
                if result.kind == "run":
                    run = run_from(result, run_id=run_id, status=FINISHED, output_dir=str(file.parent))
                    found += 1
                    key = (result.identity, run.machine)
                    known = first.setdefault(key, run) if len(folders) > 1 and result.identity else run
                    if known is run:
                        runs.append(run)
                    else:
                        repeated += 1
                        _check_equal(known, run)
            except InputError:
                raise
            except BROKEN as error:
                log.warning("%s is damaged; this run is left out (%s: %s)", file, type(error).__name__, error)
        if not found:
            raise InputError(f"runs={folder} holds no folder of a run, with a {RESULT_FILE} in it")
    if repeated:
        log.info("runs that several folders hold, which count once: %d", repeated)
    return in_order(runs)


def _check_equal(run: StudyRun, other: StudyRun) -> None:
    """Raise `InputError` if two records of one run have different test metrics."""
    for name in sorted(run.metrics.keys() & other.metrics.keys()):
        values = run.metrics[name], other.metrics[name]
        if name.startswith("test/") and not (values[0] == values[1] or all(map(math.isnan, values))):
            raise InputError(
                f"runs=: {run.output_dir} and {other.output_dir} hold the same run with different results, {name} "
                f"{values[0]:g} and {values[1]:g}; move one of them elsewhere, or list the folders of single runs"
            )


def run_from(result: RunResult, *, run_id: str, status: str, output_dir: str) -> StudyRun:
    """A run from its result.json; parameters may be text, as MLflow has them."""
    params, size, first = result.params, result.params.get("train_size"), result.params.get("pretraining_seed")
    metrics = {name: math.nan if value is None else value for name, value in result.metrics.items()}
    names, typed = sorted(entry["file_name"] for entry in result.counts), words_of(result.overrides)
    return StudyRun(
        study=result.study,
        dataset=params["dataset"],
        split=params["split"],
        variations=int(params["variations"]),
        generator=params["generator"],
        detector=params["detector"],
        seed=int(params["seed"]),
        steps=int(params["steps"]),
        run_id=run_id,
        status=status,
        output_dir=output_dir,
        setting=result.setting or "unknown",
        metrics=metrics,
        minutes=metrics.get("time/total", math.nan) / 60,
        overrides=shlex.join(current_override(word) for word in typed if setting_of(word) not in WITHOUT),
        store=result.data.get("store") or "",
        train_size=None if size is None else int(size),
        pretraining_seed=None if first is None else int(first),
        labels=params.get("labels", ""),
        validation=tuple((int(step), float(value)) for step, value in result.validation),
        condition={current_name(key): value for key, value in flatten(result.condition).items()},
        data=result.data.get("dataset_sha256") or "",
        images=result.data.get("split_sha256") or "",
        test=hashlib.sha256("\0".join(names).encode()).hexdigest() if names else "",
        provenance=flatten(result.provenance),
        classes={e["name"]: {**e["metrics"], "count_threshold": e["count_threshold"]} for e in result.classes},
    )


def current_override(word: str) -> str:
    """An override with the present name of its setting."""
    name, separator, value = word.partition("=")
    setting = setting_of(word)
    return name.removesuffix(setting) + current_name(setting) + separator + value


def setting_of(word: str) -> str:
    """The setting of an override, without Hydra's signs."""
    return word.partition("=")[0].lstrip("+~")


def in_order(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """By split, generator, number of variations and seed."""
    return sorted(runs, key=lambda run: (run.split, run.generator, run.variations, run.seed))


def with_evidence(
    runs: Sequence[StudyRun],
    copies: Mapping[str, Path],
    bring_back: Callable[[StudyRun], Evidence | None] | None = None,
) -> tuple[list[StudyRun], dict[str, Evidence]]:
    """The runs, with status `DAMAGED` where matches cannot be read, and the evidence of the finished ones by run id.

    ``copies`` are folders by run id that have what a run's own folder lacks; ``bring_back`` gets damaged evidence from
    elsewhere.
    """
    evidence, judged = {}, []
    for run in runs:
        folders = [Path(run.output_dir)] if run.output_dir else []
        folders += [copies[run.run_id]] if run.run_id in copies else []
        if run.status == FINISHED:
            loaded = next((each for folder in folders if (each := Evidence.load(folder)) is not None), None)
            # Runs of older versions keep no matches.
            if loaded is None and any((folder / MATCHES_FILE).exists() for folder in folders):
                loaded = bring_back(run) if bring_back else None
                run = run if loaded else replace(run, status=DAMAGED)
            elif loaded is None and run.condition:
                log.warning(
                    "%s lacks its %s: its differences have no interval", run.output_dir or run.name, MATCHES_FILE
                )
            if loaded is not None:
                evidence[run.run_id] = loaded
        judged.append(run)
    return judged, evidence
