"""What people do with labels: one function for each verb of ``review.py``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from boxtwin.errors import InputError
from boxtwin.tracking.study_names import find_study

VERBS = ("export", "read", "suspects", "next")


def review(config: DictConfig) -> None:
    """Do what one of `VERBS` asks for; raises `InputError` if none or several are set."""
    asked = [verb for verb in VERBS if config[verb] is not None]
    if len(asked) != 1:
        given = " and ".join(f"{verb}={config[verb]}" for verb in asked) or "none of them"
        raise InputError(f"say one of {', '.join(f'{verb}=' for verb in VERBS)}, not {given}; see review.py --help")
    # A wrong name is refused before libraries are imported, which takes long; a folder of runs may stand for a study.
    if asked[0] == "next" or (asked[0] == "suspects" and not Path(config.suspects).exists()):
        study = config.suspects if asked[0] == "suspects" else config.study
        find_study(study, config.tracking.uri, Path(config.tracking.folder))
    # Imported one by one: each verb needs libraries of its own.
    match asked[0]:
        case "export":
            from boxtwin.commands.review_labels import export_labels

            export_labels(config)
        case "read":
            from boxtwin.commands.review_labels import read_labels

            read_labels(config)
        case "suspects":
            from boxtwin.commands.review_suspects import list_suspects

            list_suspects(config)
        case _:
            from boxtwin.commands.review_next import choose_next

            choose_next(config)
