"""Running the root scripts: the command line as people write it, errors as people read them, sweeps to their end."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote

from hydra._internal.utils import get_args_parser, run_and_report
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from boxtwin.config.compose import register, renamed_setting
from boxtwin.config.identity import REMOVED_SETTINGS, cell_name, short_hash
from boxtwin.errors import DataError, InputError, unanswered
from boxtwin.files import check_name, refusal, write_bytes_atomically
from boxtwin.mixing.options import VariationsOptions

log = logging.getLogger(__name__)

RESULT_FILE = "result.json"  # what a run writes last
ATTEMPTS = 2  # at a run that breaks down
SWEEP_VARIABLE = "BOXTWIN_SWEEP"
_PLAIN = re.compile(r"(?P<key>\+?variations)=(?P<choices>(?:[\w.+-]|range\([^()]*\)|[\s,])*)")
OPTIONS_VARIABLE = "BOXTWIN_OPTIONS"
_ADDRESS = re.compile(
    r"(?P<key>\+*tracking\.uri)=(?P<quote>[\"']?)(?P<scheme>[\w+.-]+)://(?P<user>[^/\s]*)@(?P<rest>.*)"
)

# Set before torch is imported. Waiting OpenMP threads that spin make two busy processes on the same cores several times
# slower; passive ones cost next to nothing on an idle machine. The rest keeps programs from phoning home.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

# Settings of a data set that make no difference to what is read, and so to what is wrong with it.
_NOT_READING = ("image_size", "speckle", "augmentation")

_failed = 0
_note: _Note | None = None  # of the job at work in this process


def quote_numbers(arguments: Sequence[str], options: Path) -> list[str]:
    """``variations=0,2,10`` -> ``variations='0','2','10'``, and an option for every number named.

    Hydra reads a bare number as an integer and refuses it as the choice of a config group. Numbers without a file in
    ``options`` (conf/variations) get an option of their own.
    """
    quoted = []
    own = chosen_files(arguments).get("--config-dir")
    folders = [options] if own is None else [options, Path(own) / options.name]
    for folder in folders:
        former = folder.parent / "generator_at"
        if former.is_dir():
            raise InputError(f"{former} is not read any more: rename it to {former.with_name('dataset_generator')}")
    for argument in arguments:
        match = _PLAIN.fullmatch(argument)
        if match is None:
            quoted.append(argument)
            continue
        words = re.split(r",(?![^(]*\))", match["choices"])  # but for commas between parentheses
        numbers = [number for word in words for number in _numbers(argument, word.strip(), folders)]
        for number in numbers:
            if any((folder / f"{number}.yaml").exists() for folder in folders):
                continue
            ConfigStore.instance().store(
                group="variations", name=number, node=VariationsOptions(per_image=int(number)), provider="boxtwin"
            )
        quoted.append(f"{match['key']}=" + ",".join(f"'{number}'" for number in numbers))
    return quoted


def _numbers(argument: str, word: str, folders: Sequence[Path]) -> list[str]:
    """The numbers that a word stands for; a name that has a file of its own stays.

    Raises:
        InputError: it is neither.
    """
    if re.fullmatch(r"\d+", word):
        return [str(int(word))]
    if re.fullmatch(r"range\(\s*\d+\s*(,\s*-?\d+\s*){0,2}\)", word):
        ends = [int(end) for end in word.removeprefix("range(").removesuffix(")").split(",")]
        numbers = list(range(*ends)) if 0 not in ends[2:] else []
        if numbers and min(numbers) >= 0:
            return [str(number) for number in numbers]
    elif word and any((folder / f"{word}.yaml").exists() for folder in folders):
        return [word]
    raise InputError(
        f"{argument}: {word!r} is no number of variations per image; give whole numbers from 0, as in "
        "variations=0,2,10 or variations=range(0,3)"
    )


def chosen_files(arguments: Sequence[str]) -> dict[str, str]:
    """The values of Hydra's options that choose files, by their long names, read as Hydra reads them."""
    read = vars(get_args_parser().parse_args(list(arguments)))
    named = {name: read[name.replace("-", "_")] for name in ("config-path", "config-dir", "config-name")}
    return {f"--{name}": value for name, value in named.items() if value is not None}


def typed() -> list[str]:
    """What was typed to get this job, to be kept with its result: Hydra's options that choose files, and overrides."""
    return [*json.loads(os.environ.get(OPTIONS_VARIABLE, "[]")), *_overrides()]


def _overrides() -> list[str]:
    """Of this job, as they were typed: with settings that name others, such as ``study=mine-${seed}``."""
    plain: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return plain


def hide_password(argument: str) -> str:
    """Take the user's name and password out of ``tracking.uri=http://USER:PASSWORD@HOST``, into MLflow's variables.

    What is configured is written to many files, variables of the environment are not.

    Raises:
        InputError: it is the address of a database, for which MLflow has no such variables.
    """
    match = _ADDRESS.fullmatch(argument)
    if match is None:
        return argument
    if match["scheme"] not in ("http", "https"):
        raise InputError(
            "tracking.uri holds a user's name or password, which would be written to many files: leave them out, and "
            "give them as the database's own programs take them (PGUSER, PGPASSWORD), or run `mlflow server` before it"
        )
    user, has_password, password = match["user"].partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
    if has_password:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return f"{match['key']}={match['quote']}{match['scheme']}://{match['rest']}"


def launch(main: Callable[[], Any]) -> None:
    """Run a Hydra main function and leave with the right exit code: 0 only if everything went well."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    register()
    # A polite kill unwinds like Ctrl-C does, so that a run does not stay RUNNING in MLflow.
    signal.signal(signal.SIGTERM, _stop)
    try:
        arguments = [hide_password(argument) for argument in sys.argv[1:]]
        sys.argv[1:] = quote_numbers(arguments, Path(sys.argv[0]).resolve().parent / "conf" / "variations")
        options = [f"{option}={value}" for option, value in chosen_files(sys.argv[1:]).items()]
        os.environ[OPTIONS_VARIABLE] = json.dumps(options)
        _run(main)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    except InputError as error:
        sys.exit(str(error))
    sys.exit(1 if _failed else 0)


def _run(main: Callable[[], Any]) -> None:
    """Let Hydra work, and show what it meets as it does itself, but for what people can mend: that is one line."""
    if os.environ.get("HYDRA_FULL_ERROR"):
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except Exception as error:
        line = error if isinstance(error, InputError) else renamed_setting(error) or refusal(error)
        line = line or _removed_setting(error)
        if line is not None:
            raise line from None
        del os.environ["HYDRA_FULL_ERROR"]
        run_and_report(partial(_raise, error))


def _removed_setting(error: Exception) -> InputError | None:
    """One line for a setting of an earlier version, on the command line or in a file; None for any other error."""
    match = re.search(r"Key '(\w+)' (?:is )?not in .*\n\s+full_key: (\S+)", str(error.__cause__ or error))
    for group in REMOVED_SETTINGS.values() if match else ():
        if match and match[1] in group:
            return InputError(f"{match[2]} is no setting any more; its value is always {group[match[1]]}: leave it out")
    return None


def _raise(error: Exception) -> None:
    raise error


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Sweep:
    """A sweep at work, as its jobs know of it wherever they run: from their environment."""

    notes: str  # absolute: the folder for notes of how its jobs ended
    jobs: int
    there: int  # of which had a result before
    started: float  # seconds since the epoch

    def to_json(self) -> str:
        """The value of the environment's variable."""
        return json.dumps(asdict(self))

    @classmethod
    def of_this_process(cls) -> Sweep | None:
        """The sweep that started this process; None where another sweeper did."""
        value = os.environ.get(SWEEP_VARIABLE)
        return None if value is None else cls(**json.loads(value))

    def progress(self) -> str:
        """How many of its jobs have ended, and how long the rest will take if they take as long as those before."""
        notes = [json.loads(note.read_text()) for note in Path(self.notes).glob("*.json")]
        ended = [note for note in notes if note["ended"]]
        new = sum(note["new"] for note in ended)
        left = self.jobs - self.there - new
        said = f"{len(ended)} of {self.jobs} runs of this sweep have ended"
        if new and left > 0:
            said += f"; about {_duration((time.time() - self.started) / new * left)} left"
        return said

    def data_error(self, data: str) -> str | None:
        """What another job has found wrong with the same data set (see `_data_of`)."""
        notes = [json.loads(note.read_text()) for note in Path(self.notes).glob("*.json")]
        return next((note["reason"] for note in notes if note.get("data") == data), None)

    def note_of(self, overrides: Sequence[str]) -> Path:
        """Where the job with these overrides leaves its note."""
        return Path(self.notes) / f"{short_hash(list(overrides))}.json"


@dataclass(frozen=True)
class Outcome:
    """How a job of a sweep ended."""

    cell: str
    attempts: int  # that were begun
    reason: str | None  # why it failed
    mendable: bool  # by the user: trying again would change nothing

    @property
    def worth_another_try(self) -> bool:
        """Whether it broke down, the first time."""
        return self.reason is not None and not self.mendable and self.attempts < ATTEMPTS

    @classmethod
    def read(cls, note: Path, name: str) -> Outcome:
        """From the note of a job, which is begun when the job is; ``name`` is what to call one without."""
        if not note.exists():
            return cls(name, 0, "it was never started", mendable=False)
        content = json.loads(note.read_text())
        reason = content["reason"] if content["ended"] else "it was killed"
        return cls(content["cell"], content["attempts"], reason, content["mendable"])


def guard(work: Callable[[DictConfig], object], config: DictConfig) -> None:
    """Run one job; if it fails, say why, and let a sweep go on.

    What the user can mend (`InputError`) is shown as its message alone, anything else with its traceback. In a sweep
    the job leaves a note of how it ended, and says how far the sweep is.
    """
    global _failed, _note
    hydra = HydraConfig.get()
    sweep = Sweep.of_this_process() if hydra.mode == RunMode.MULTIRUN else None
    note = None
    _note = None
    if sweep is not None:
        new = not (Path(hydra.runtime.output_dir) / RESULT_FILE).exists()
        note = _note = _Note(sweep.note_of(_overrides()), _name_of(config), new=new)
    reason, mendable, data = None, False, None
    known = sweep.data_error(_data_of(config)) if sweep is not None else None
    try:
        if known is not None:  # all data are read and checked once for a sweep, not once for each of its jobs
            raise DataError(known)
        _check(config)
        work(config)
    except Exception as error:
        refused = refusal(error)  # a disk may have room again when the sweep tries once more
        mendable = isinstance(error, InputError) and refused is None
        away = None if mendable or refused else unanswered(error)
        reason = away or (str(refused or error) if mendable or refused else f"{type(error).__name__}: {error}")
        if not (mendable or refused or away):
            log.error("%s", traceback.format_exc())
        if note is None:
            if hydra.mode == RunMode.MULTIRUN:
                raise  # another sweeper has its own way with failures
            _failed += 1
            log.error("%s", reason)
            return
        data = _data_of(config) if isinstance(error, DataError) else None
        # The list at the end of the sweep has the whole message, once for all runs that share it.
        if known is None:
            log.error("%s FAILED: %s", _name_of(config), reason.splitlines()[0])
    if note is not None and sweep is not None:
        note.write(ended=True, reason=reason, mendable=mendable, data=data)
        log.info("%s", sweep.progress())


def _check(config: DictConfig) -> None:
    """What Hydra lets pass, and what would write where nobody looks.

    Raises:
        InputError: a setting is refused.
    """
    hydra = HydraConfig.get()
    if hydra.job.chdir:
        raise InputError(
            "hydra.job.chdir=true is refused: data, mlruns and reports are found from the folder that the command "
            "is typed in. Leave it out; where a run writes is hydra.run.dir"
        )
    check_name(config.get("study"), "study")
    uri = OmegaConf.select(config, "tracking.uri")
    match = _ADDRESS.fullmatch(f"tracking.uri={uri}")
    if match is not None:  # from a file of settings: out of the arguments it was taken
        for file in Path(hydra.runtime.output_dir).glob(".hydra/*.yaml"):
            file.write_text(file.read_text().replace(f"{match['user']}@", ""))
        raise InputError(
            "tracking.uri holds a user's name or password, which would be written to many files: leave them out there, "
            "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )


class _Note:
    """What a job of a sweep leaves for the sweep: begun with it, so that one that was killed is known too."""

    def __init__(self, path: Path, cell: str, *, new: bool) -> None:
        self._path = path
        before = json.loads(path.read_text())["attempts"] if path.exists() else 0
        self._content = {"cell": cell, "attempts": before + 1, "new": new, "host": platform.node(), "pid": os.getpid()}
        self.write(ended=False, reason=None, mendable=False)

    def write(self, **state: object) -> None:
        # The folder is gone where the sweep was given up, by a launcher that left this job running.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(self._path, json.dumps(self._content | state).encode())


def note_run(uri: str, study: str, identity: str, lock: Path) -> None:
    """Note, before it begins, the MLflow run of this job: the sweep ends it if this process is killed and cannot.

    Args:
        uri: address of the store.
        study: of the run.
        identity: of the run.
        lock: held by whoever is at the run.
    """
    if _note is not None:
        run = {"uri": uri, "study": study, "identity": identity, "lock": str(lock.absolute())}
        _note.write(ended=False, reason=None, mendable=False, run=run)


def report_failures(outcomes: Sequence[Outcome]) -> None:
    """List every run of a sweep that failed, and why; `launch` then ends with 1."""
    global _failed
    reasons: dict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.reason is not None:
            reasons[outcome.reason].append(outcome.cell)
    failed = sum(len(cells) for cells in reasons.values())
    _failed += failed
    if reasons:
        lines = [f"{failed} run(s) of this sweep failed; the same command tries them again:"]
        for reason, cells in reasons.items():
            lines += [f"  {', '.join(cells)}:", *(f"    {line}" for line in reason.splitlines())]
        log.error("\n".join(lines))


def _data_of(config: DictConfig) -> str:
    """Equal for configurations that read the same data set in the same way."""
    plain: Any = OmegaConf.to_container(config, enum_to_str=True)
    dataset = {key: value for key, value in plain.get("dataset", {}).items() if key not in _NOT_READING}
    return short_hash([plain.get("data"), dataset, plain.get("split", {}).get("group_by")])


def _name_of(config: DictConfig) -> str:
    try:
        return cell_name(config)
    except Exception as error:  # a missing value, say: the name must not hide the reason
        return f"(run without a name: {error})"


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours else f"{minutes} min"
