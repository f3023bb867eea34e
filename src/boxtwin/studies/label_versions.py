"""Which conditions of a study have the same version of the training labels."""

from __future__ import annotations

from collections.abc import Sequence

from boxtwin.studies.conditions import Row


class LabelVersions:
    """Tells labels that were corrected during a study from those before.

    Versions go by the names of annotations and data folder, as they were typed. Two names are one version where both
    give the same training images and labels, as on machines with other folders.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._version: dict[object, object] = {}
        first: dict[str, object] = {}  # name of a version, by the hash of training images and labels
        for row in rows:
            names, data = row.first.label_names, row.values.get("data.train")
            if data is not None:
                self._join(names, first.setdefault(data, names))

    def of(self, row: Row) -> object:
        """The version of a condition's training labels."""
        return self._root(row.first.label_names)

    def _root(self, names: object) -> object:
        while (other := self._version.get(names, names)) != names:
            names = other
        return names

    def _join(self, one: object, other: object) -> None:
        self._version[self._root(one)] = self._root(other)
