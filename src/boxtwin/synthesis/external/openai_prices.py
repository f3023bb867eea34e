"""List prices of hosted image models, so that a budget can be checked before anything is sent.

A square costs its output, which depends on the quality, and its input, which is an image of some hundred or thousand
tokens; the prompt adds less than a tenth of a cent. Models whose tokens an image are not published are not listed.
"""

from __future__ import annotations

from typing import NamedTuple

DATE = "2026-11-28"
SOURCE = "https://developers.openai.com/api/docs/pricing and its pages of models"
SIZE = 1024  # side of the squares that the prices are of, pixels
# Tokens of a square that is sent, by input_fidelity: developers.openai.com/api/docs/guides/images-vision
_LOW, _HIGH = 65 + 129, 65 + 129 + 4160


class _Prices(NamedTuple):
    """Of one model, US dollars."""

    output: dict[str, float]  # a square of `SIZE`, by quality
    million_input: float  # a million tokens of images that are sent
    fidelity: dict[str | None, int]  # tokens of a square that is sent, by input_fidelity; None: not set


_CHOSEN: dict[str | None, int] = {None: _LOW, "low": _LOW, "high": _HIGH}
_PRICES = {
    "gpt-image-2": _Prices({"low": 0.006, "medium": 0.053, "high": 0.211}, 8, {None: _HIGH, "high": _HIGH}),
    "gpt-image-1.5": _Prices({"low": 0.009, "medium": 0.034, "high": 0.133}, 8, _CHOSEN),
    "gpt-image-1": _Prices({"low": 0.011, "medium": 0.042, "high": 0.167}, 10, _CHOSEN),
    "gpt-image-1-mini": _Prices({"low": 0.005, "medium": 0.011, "high": 0.036}, 2.5, {None: _LOW}),
}
HOST = "api.openai.com"  # whose prices these are
KNOWN = f"{HOST}'s list prices of {DATE} for squares of {SIZE} pixels: {', '.join(_PRICES)}"


def list_price(host: str, model: str, size: int | None, quality: str | None, fidelity: str | None) -> float | None:
    """US dollars of one square that is sent and comes back; None if it is not known."""
    prices = _PRICES.get(model)
    if host != HOST or prices is None or size != SIZE or quality not in prices.output:
        return None
    tokens = prices.fidelity.get(fidelity)
    return None if tokens is None else round(prices.output[quality] + tokens * prices.million_input / 1e6, 4)
