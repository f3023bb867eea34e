"""A generator that breaks down after two images, until somebody mends it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from boxtwin.synthesis.controls import Repeat
from boxtwin.synthesis.generator import Request, Variation


class BreaksDown(Repeat):
    name = "breaks_down"

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation]:
        for count, variation in enumerate(super().vary(requests)):
            if count == 2 and not Path("mended").exists():
                raise RuntimeError("the generator broke down")
            yield variation
