"""Text in pictures, in any script: fonts that have its characters, and escapes for characters that no font has.

matplotlib's own font has Latin, Greek, Cyrillic, Arabic and Hebrew letters; two packages of Noto fonts (SIL Open Font
License) add Chinese, Japanese, Korean and the scripts of India and South East Asia. Fonts of the machine come last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matplotlib import colormaps, font_manager
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text

BASE = "DejaVu Sans"  # comes with matplotlib
PACKAGES = ("noto_cjk_sans_otc", "manimgx_fonts")  # not imported: their folders hold the fonts
NO_FONT = re.compile("last ?resort", re.IGNORECASE)  # a font with a placeholder for every character
GOLDEN = (5**0.5 - 1) / 2  # any number of multiples of it are spread evenly modulo 1


@lru_cache
def _packaged() -> tuple[str, ...]:
    """The families of the packaged fonts, added to matplotlib's; fewer if packages are missing."""
    families = []
    for package in PACKAGES:
        spec = find_spec(package)
        for path in sorted(Path(spec.origin).parent.glob("*.tt[fc]")) if spec and spec.origin else ():
            if "Italic" not in path.name:
                font_manager.fontManager.addfont(path)
                families.append(str(FT2Font(path).family_name))
    return tuple(families)


@cache
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # some systems have other files among their fonts
        return frozenset()


@lru_cache(maxsize=10_000)
def _family_of(letter: str) -> str | None:
    """A family with a glyph for a character, or None."""
    for family in (BASE, *_packaged()):
        if ord(letter) in _characters(font_manager.findfont(family)):
            return family
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style != "normal", font.name)):
        has_letter = not NO_FONT.search(font.name) and ord(letter) in _characters(font.fname)
        if has_letter and font_manager.findfont(font.name) == font.fname:  # several files may share a name
            return str(font.name)
    return None


def drawable(text: str) -> str:
    """The text with invisible characters, and those that no font has, as ``\\u1234``."""

    def drawn(letter: str) -> bool:
        return letter == " " or (letter.isprintable() and _family_of(letter) is not None)

    return "".join(letter if drawn(letter) else letter.encode("unicode_escape").decode() for letter in text)


def lettering(text: str) -> dict[str, Any]:
    """Settings with which matplotlib draws `drawable` text literally: ``$`` and ``_`` mean no mathematics."""
    others = {family for letter in set(text) - {" ", "\n"} if (family := _family_of(letter))} - {BASE}
    return {"family": [BASE, *sorted(others)], "parse_math": False}


def shorten(text: str, length: int = 34) -> str:
    """The text as it can be drawn, cut in its middle if it is longer."""
    shown = drawable(text)
    return shown if len(shown) <= length else f"{shown[: length // 2 - 1]}…{shown[-(length - length // 2) :]}"


def shorten_path(path: str, length: int = 34) -> str:
    """The last part of a path, as `shorten` has it."""
    return shorten(path.rsplit("/", 1)[-1], length)


def class_colour(label: int) -> str:
    """A colour for each class, the same in every picture; the first ten suit colour-blind readers."""
    if label < 10:
        return str(to_hex(colormaps["tab10"](label)))
    red, green, blue = hsv_to_rgb((label * GOLDEN % 1, 0.75, 0.85)).tolist()
    return str(to_hex((red, green, blue)))


def readable_on(colour: str) -> str:
    """Black or white, whichever has more contrast to a colour."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"  # luma, ITU-R BT.601


def put(text: Text, name: str, length: int = 34) -> None:
    """Set a text of a figure to a name, in any script."""
    shown = shorten(name, length)
    text.set(text=shown, **lettering(shown))


def legend(figure: Figure, lines: Sequence[Line2D], names: Sequence[str], length: int = 34, **style: Any) -> Legend:
    """A legend with names in any script."""
    # Names are put in afterwards: matplotlib leaves out those that begin with an underscore.
    drawn = figure.legend(lines, [str(number) for number in range(len(lines))], **style)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        put(text, name, length)
    return drawn
