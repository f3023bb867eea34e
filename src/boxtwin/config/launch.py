"""Start the root scripts: prepare the command line for Hydra, run jobs, and report errors.

The jobs of a sweep leave notes on disk (`boxtwin.config.notes`).
"""

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
from pathlib import Path
from typing import Any

from hydra._internal.utils import run_and_report
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from boxtwin.command_line import quote_path
from boxtwin.config.arguments import (
    ADDRESS,
    PASSWORD,
    SWEEPING,
    check_options,
    chosen_files,
    for_jobs_alone,
    hide_password,
    quote_list,
    quote_numbers,
    quote_refused,
    quote_texts,
    refused_word,
)
from boxtwin.config.automatic import resolve_auto
from boxtwin.config.compose import register, unknown_setting
from boxtwin.config.identity import NO_PRETRAINING, run_name, short_hash
from boxtwin.config.notes import Note, names_of, note_path, notes_in, progress
from boxtwin.config.schema import TEXTS
from boxtwin.errors import DataError, InputError, WriteError, unanswered
from boxtwin.files import check_name, remove_unwritten, write_error

log = logging.getLogger(__name__)

OPTIONS_VARIABLE, SWEEP_VARIABLE = "BOXTWIN_OPTIONS", "BOXTWIN_SWEEP"
BAR_VARIABLE = "BOXTWIN_BAR"  # set where the process that sweeps draws a bar on the terminal
ATTEMPTS = 2  # at a run that breaks down

# Set before torch is imported. Spinning OpenMP threads make two busy processes on the same cores several times slower.
# The rest disables telemetry (of MLflow and Hugging Face, whatever DO_NOT_TRACK a user has set) and progress bars.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    **dict.fromkeys(("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"), "true"),
    "TRANSFORMERS_VERBOSITY": "error",  # it warns of image processors that use Pillow, which is intended here
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "GDAL_CACHEMAX": "256",  # MB of a scene's blocks; by default a twentieth of the machine's memory
}
# Loggers of passes of the ONNX optimiser, of steps of MLflow and of HTTP requests: nothing a user can act on.
QUIET = ("onnxscript", "onnx_ir", "mlflow.pyfunc", "mlflow.store.db.utils", "alembic", "httpx", "httpx2")
_NOT_READING = ("image_size", "speckle", "augmentation")  # settings of a data set that do not change how it is read
_failed = 0
_check_run: Callable[[DictConfig], object] | None = None  # of the command at work
_note: Note | None = None  # of the job at work in this process


def check_all(combinations: Sequence[tuple[Sequence[str], DictConfig]]) -> None:
    """Raise one `InputError` for all wrong settings among the jobs of a sweep, given by overrides and configuration.

    It names the overrides that all jobs with an error have, and no other job.
    """
    wrong: dict[str, list[int]] = defaultdict(list)
    for number, (_, config) in enumerate(combinations):
        try:
            if _check_run is not None:
                _check_run(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        except InputError as error:
            wrong[str(error)].append(number)
        except InterpolationResolutionError as error:  # of what Hydra knows in a run alone
            log.debug("not checked, the run will tell: %s", error)
    if not wrong:
        return
    lines = [f"{sum(map(len, wrong.values()))} of {len(combinations)} runs have wrong settings; none was begun:"]
    for message, numbers in wrong.items():
        others = {word for number, (words, _) in enumerate(combinations) if number not in numbers for word in words}
        shared = set.intersection(*(set(combinations[number][0]) for number in numbers)) - others
        listed = [word for word in combinations[numbers[0]][0] if word in shared] if others else []
        named = [re.sub(r"^variations='(\d+)'$", r"variations=\1", word) for word in listed]  # as it was typed
        lines.append(f"  {' '.join(named)}: {message}" if named else f"  {message}")
    raise InputError("\n".join(lines))


def runs_here() -> bool:
    """Whether the jobs of this command run on this machine: a launcher that the user chose may send them elsewhere."""
    if not HydraConfig.initialized():
        return True
    return str(HydraConfig.get().launcher._target_).endswith(("BasicLauncher", "JoblibLauncher"))


def typed_words() -> list[str]:
    """What was typed to get this job, to be kept with its result: Hydra's options that choose files, and overrides."""
    return [*json.loads(os.environ.get(OPTIONS_VARIABLE, "[]")), *task_overrides()]


def task_overrides() -> list[str]:
    """The overrides of this job, as they were typed: with settings that name others, such as ``study=mine-${seed}``."""
    plain: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return plain


def set_environment() -> None:
    """Set the variables of `ENVIRONMENT` that are not set, before torch and MLflow are imported."""
    os.environ.update(ENVIRONMENT | os.environ)


def launch(
    main: Callable[[], Any],
    paths: Sequence[str] = (),
    composed_paths: Sequence[str] = (),
    again: str = "continues from here",
    check: Callable[[DictConfig], object] | None = None,
) -> None:
    """Run a Hydra main function and exit: with 0 only if everything went well.

    ``paths`` are settings whose values are paths; they need no quotes of Hydra's, whatever characters they hold.
    ``composed_paths`` are such settings too, but may hold interpolations and sweeps (`quote_refused`).
    ``again`` is what the same command does after it was stopped. ``check`` raises `InputError` for wrong settings; the
    runs of a sweep are checked before the first one begins.
    """
    global _check_run
    _check_run = check
    set_environment()
    register()
    received = [signal.SIGINT]

    def stop(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # as Ctrl-C, so that MLflow runs are ended
    try:
        # Hydra's parser refuses settings on both sides of an option.
        ordered = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
        typed = [hide_password(argument) for argument in ordered]
        words = quote_texts([quote_path(quote_list(word, paths), paths) for word in typed], TEXTS)
        arguments = quote_refused(words, composed_paths)
        conf = Path(sys.argv[0]).resolve().parent / "conf"
        sys.argv[1:] = quote_numbers(arguments, conf / "variations")
        chosen = chosen_files(sys.argv[1:])
        folders = [conf, *([Path(chosen["--config-dir"])] if "--config-dir" in chosen else [])]
        if Path(sys.argv[0]).stem in SWEEPING:  # other scripts have no groups, but settings of such names
            check_options(sys.argv[1:], folders)
        sys.argv[1:], became = resolve_auto(Path(sys.argv[0]), sys.argv[1:], chosen.get("--config-dir"))
        if became:
            print(became, file=sys.stderr, flush=True)  # before Hydra sets up logging
        sys.argv[1:] = for_jobs_alone(sys.argv[1:], [folder / "experiment" for folder in folders])
        options = [f"{option}={value}" for option, value in chosen.items()]
        os.environ[OPTIONS_VARIABLE] = json.dumps(options)
        _run(main, typed)
    except KeyboardInterrupt:
        print(f"stopped; the same command {again}", file=sys.stderr)
        sys.exit(128 + received[-1])  # as shells name what a signal ended
    except BrokenPipeError:  # what is printed is read no further, as by `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at its end
        sys.exit(1)
    except InputError as error:
        sys.exit(str(error))
    sys.exit(1 if _failed else 0)


def _run(main: Callable[[], Any], typed: Sequence[str] = ()) -> None:
    """Let Hydra work; errors that users can repair become one line, others are shown as Hydra shows them."""
    if os.environ.get("HYDRA_FULL_ERROR"):
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except BrokenPipeError:
        raise
    except Exception as error:
        line = error if isinstance(error, InputError) else write_error(error) or unknown_setting(error)
        if line is not None or (line := refused_word(error, typed)) is not None:
            raise line from None
        del os.environ["HYDRA_FULL_ERROR"]

        def fail(error: Exception = error) -> None:
            raise error

        run_and_report(fail)


def guard(work: Callable[[DictConfig], object], config: DictConfig) -> None:
    """Run one job; if it fails, log why, and let a sweep go on.

    What the user can repair (`InputError`) is shown as its message alone, anything else with its traceback. In a sweep
    the job leaves a note of how it ended, and logs the progress of the sweep.
    """
    global _failed, _note
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if os.environ.get(BAR_VARIABLE):
        _write_over_bar()
    hydra = HydraConfig.get()
    in_sweep = hydra.mode == RunMode.MULTIRUN
    folder = os.environ.get(SWEEP_VARIABLE) if in_sweep else None  # of notes; None: another sweeper is at work
    _note, known_error = None, None
    if folder is not None:
        path, data_set = note_path(folder, task_overrides()), _data_of(config)
        note = Note.read(path) if Path(path).exists() else Note(path)  # a launcher may have left this job behind
        begun = Note(path, _name_of(config), note.new, note.attempts + 1, reason=None, words=note.words)
        _note = begun.write(host=platform.node(), begun=time.time())
        known_error = next((each.reason for each in notes_in(folder) if each.data == data_set), None)
    reason, repairable, data = None, False, None
    try:
        if known_error is not None:  # all data are read and checked once for a sweep, not once for each of its jobs
            raise DataError(known_error)
        _check(config)
        if not in_sweep and _check_run is not None:
            _check_run(config)
        work(config)
    except Exception as error:
        line = write_error(error) or (error if isinstance(error, InputError) else unanswered(error))
        # A disk may have room again when the sweep tries once more.
        repairable = isinstance(line, InputError) and not isinstance(line, WriteError)
        reason = f"{type(error).__name__}: {error}" if line is None else str(line)
        if line is None:
            log.error("%s", traceback.format_exc())
        if repairable:
            remove_unwritten(Path(hydra.runtime.output_dir), {".hydra", f"{hydra.job.name}.log"})
        if _note is None:
            if in_sweep:
                raise  # another sweeper has its own way with failures
            _failed += 1
            log.error("%s", reason)
            return
        data = _data_of(config) if isinstance(error, DataError) else None
        # The list at the end of the sweep has the whole message, once for all runs that share it.
        if known_error is None:
            log.error("%s FAILED: %s", _name_of(config), reason.splitlines()[0])
    if folder is not None and _note is not None:
        seconds = time.time() - _note.begun
        _note = _note.write(ended=True, seconds=seconds, reason=reason, repairable=repairable, data=data)
        if not os.environ.get(BAR_VARIABLE):
            log.info("%s", progress(notes_in(folder)))


def _write_over_bar() -> None:
    """Let lines on a terminal begin by clearing what stands there, a bar, which is drawn again below them."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
            handler.setFormatter(logging.Formatter("\r\x1b[K%(message)s"))


def _check(config: DictConfig) -> None:
    """Raise `InputError` for settings that Hydra accepts and boxtwin does not."""
    hydra = HydraConfig.get()
    if hydra.job.chdir:
        raise InputError(
            "hydra.job.chdir=true is refused: data, mlruns and reports are found from the folder that the command "
            "is typed in. Leave it out; where a run writes is hydra.run.dir"
        )
    check_name(config.get("study"), "study")
    match = ADDRESS.fullmatch(f"tracking.uri={OmegaConf.select(config, 'tracking.uri')}")
    if match is not None:  # from a file of settings: out of the arguments it was taken
        for file in Path(hydra.runtime.output_dir).glob(".hydra/*.yaml"):
            file.write_text(file.read_text().replace(f"{match['user']}@", ""))
        raise InputError(
            f"{PASSWORD}, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )


def note_run(**run: str) -> None:
    """Note the MLflow run of this job before it begins: the sweep ends it if this process, with its lock, is killed."""
    global _note
    if _note is not None:
        _note = _note.write(run=run)


def report_failures(notes: Sequence[Note]) -> None:
    """List every run of a sweep that failed, and why; `launch` then ends with 1."""
    global _failed
    reasons: dict[str, list[str]] = defaultdict(list)
    for note, name in zip(notes, names_of(notes), strict=True):
        if note.failure is not None:
            reasons[note.failure].append(name)
    if reasons:
        failed = sum(map(len, reasons.values()))
        _failed += failed
        lines = [f"{failed} run(s) of this sweep failed; the same command runs them once the cause is repaired:"]
        for reason, names in reasons.items():
            lines += [f"  {', '.join(names)}:", *(f"    {line}" for line in reason.splitlines())]
        log.error("\n".join(lines))


def _data_of(config: DictConfig) -> str:
    """A hash of the settings that decide how a data set is read."""
    plain: Any = OmegaConf.to_container(config, enum_to_str=True)
    dataset = {key: value for key, value in plain.get("dataset", {}).items() if key not in _NOT_READING}
    values = [plain.get("data"), dataset, plain.get("split", {}).get("group_by")]
    pretraining = plain.get("pretraining", {})
    if pretraining.get("name", NO_PRETRAINING) != NO_PRETRAINING:  # which may have a data set of its own
        values.append(pretraining.get("dataset"))
    return short_hash(values)


def _name_of(config: DictConfig) -> str:
    try:
        return run_name(config)
    except Exception as error:  # such as a missing value: the name must not hide the reason
        return f"(run without a name: {error})"
