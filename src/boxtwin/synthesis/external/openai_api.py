"""Variations by a hosted model: OpenAI's image variations and image edits, or a server that speaks their protocol.

Answers are kept in ``<name>-spool`` in the folder of models, under a hash of all that they follow from, and are never
asked for again. The spool may be removed once the stores are complete.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from boxtwin.datasets.image_io import encode_png
from boxtwin.datasets.sample import Sample
from boxtwin.errors import InputError
from boxtwin.files import exclusive_lock
from boxtwin.synthesis import squares
from boxtwin.synthesis.external import openai_prices
from boxtwin.synthesis.external.openai_calls import Calls, ImageFailedError, ModeratedError
from boxtwin.synthesis.fitness import unfit
from boxtwin.synthesis.generator import Generator, Json, Model, Refused, Request, Variation, hash_of
from boxtwin.synthesis.setting_types import check_types

SIDE = 1024  # of the squares that are sent where no size is asked for, pixels


class _OpenAIImages(Generator):
    """What image variations and image edits share.

    Args:
        model: what the host calls the model.
        size: side of the squares that are sent and asked for, pixels (`boxtwin.synthesis.squares`). With None, the
            size is not asked for, and squares of `SIDE` pixels are sent.
        overlap: of squares in images that are larger than one, pixels.
        price_usd: what one square costs; None takes the list price, where there is one.
        calls: base_url, timeout, max_tries, first_wait, as of `Calls`.
    """

    endpoint: str
    advice: str  # when model or endpoint are gone
    largest_file: int  # bytes, that the endpoint takes
    boxes = "none"
    remote = True
    reproducible = False

    def __init__(self, *, model: str, size: int | None, overlap: int, price_usd: float | None, **calls: Any) -> None:
        check_types(Calls, calls, "generator")
        self.calls = Calls(wanted=f"{self.endpoint} with {model}", advice=self.advice, **calls)
        if price_usd is not None and not price_usd >= 0:
            raise InputError(f"generator.price_usd={price_usd} must not be negative")
        self.side = SIDE if size is None else size
        if not 0 <= overlap <= self.side // 2:
            raise InputError(f"generator.overlap={overlap} must lie between 0 and half of generator.size={self.side}")
        self.base_url, self.model_name, self.price = self.calls.base_url, model, price_usd
        self.size, self.overlap = size, overlap
        self._spool: Path | None = None

    # Version 1 holds for 16 bit too, whose levels are measured now: no store is paid for twice.

    def parameters(self) -> dict[str, Json]:
        """What is sent, and how images are cut for it; neither prices nor waiting times."""
        return {**self._sent(), "overlap": self.overlap}

    def model(self) -> Model:
        """The host's name for it; its answers do not say the revision."""
        return Model(f"{self.base_url} {self.model_name}", None)

    def price_usd(self, source: Sample) -> float:
        """What the squares of ``source`` cost; InputError if that is not known."""
        if self.price is None:
            raise InputError(
                f"what {self.model_name} at {self.base_url} costs with these settings is not known: say "
                "generator.price_usd=USD, the price of one square (0 where nothing is paid); nothing was made. "
                f"Known are {openai_prices.KNOWN}"
            )
        return self.price * squares.count(source.height, source.width, self.side, self.overlap)

    def limit_costs(self, usd: float) -> None:
        """Send nothing once ``usd`` may have been billed; answers that came damaged or late count."""
        if self.price:
            self.calls.limit = math.floor(round(usd / self.price, 6))  # rounded: 0.4 is twenty times 0.02

    def fit(self, training: Sequence[Sample], folder: Path) -> None:  # noqa: ARG002, hosted models learn nothing here
        """Check that there is a key and a client to use it; raises InputError if not."""
        self.calls.check()
        self._spool = folder / f"{self.name}-spool"

    def vary(self, requests: Sequence[Request]) -> Iterator[Variation | Refused]:
        """Ask for one variation after another. Two processes that share a spool take turns, so that none pays twice.

        InputError if the host refuses key, model, endpoint or payment.
        """
        assert self._spool is not None, "fit comes first"
        waiting = f"another process asks for images of {self.name}; waiting for it"
        with exclusive_lock(self._spool / ".lock", waiting), self.calls.open() as client:
            for request in requests:
                lost, price = self.calls.lost, self.price or 0.0
                try:
                    varied: Variation | Refused = self._vary_one(client.images.with_raw_response, request, self._spool)
                except ImageFailedError as error:
                    varied = Refused(request, str(error), may_recur=not isinstance(error, ModeratedError))
                # Good squares of an image that failed are kept, and are counted when it is complete.
                yield replace(varied, cost_usd=varied.cost_usd + price * (self.calls.lost - lost))

    def _sent(self) -> dict[str, Json]:
        """All that is sent but the image."""
        return {"base_url": self.base_url, "model": self.model_name, "size": self.size}

    @abstractmethod
    def _post(self, endpoints: Any, common: dict[str, Any]) -> Any:
        """One call with the arguments that all endpoints have; its raw response."""

    def _vary_one(self, endpoints: Any, request: Request, spool: Path) -> Variation:
        source, answers = request.source.read(), []
        as_square = partial(squares.as_square, size=self.side)
        for place, square in enumerate(squares.cut(source, self.side, self.overlap)):
            png = encode_png(square)
            if len(png) >= self.largest_file:
                raise ImageFailedError(f"{len(png)} bytes of PNG are more than the API takes, {self.largest_file}")
            name = hash_of([self._sent(), hashlib.sha256(png).hexdigest(), *request.key, request.seed, place])
            common = {"image": ("image.png", png, "image/png"), "model": self.model_name, "n": 1}
            common |= {} if self.size is None else {"size": f"{self.size}x{self.size}"}
            post, spooled = partial(self._post, endpoints, common), spool / f"{name}.json"
            answers.append(self.calls.image(post, spooled, as_square))
            if (reason := unfit(square, answers[-1].pixels)) is not None:
                spooled.unlink()  # another call asks again
                self.calls.lost += 1
                raise ImageFailedError(f"{reason}; hosts send such images in place of those that their filters refuse")
        return Variation(
            request,
            squares.join([answer.pixels for answer in answers], source, self.side, self.overlap),
            np.zeros((0, 4), dtype=np.float32),
            np.zeros(0, dtype=np.int64),
            cost_usd=(self.price or 0.0) * len(answers),
            record={"squares": len(answers), "from_spool": sum(answer.from_spool for answer in answers)},
        )


class OpenAIVariations(_OpenAIImages):
    """``POST /images/variations``: an image in, a similar one out, no prompt. What DALL·E 2 did in the case study."""

    name = "openai_variations"
    endpoint = "images/variations"
    advice = (
        "OpenAI closed image variations on 2026-05-12. Name a compatible server with "
        "generator.base_url=http://HOST:PORT/v1, or take their successor with generator=openai_edit"
    )
    largest_file = 4 * 2**20

    def __init__(self, *, size: int, **settings: Any) -> None:
        if size not in (256, 512, 1024):
            raise InputError(f"generator.size={size}: image variations have 256, 512 or 1024 pixels")
        super().__init__(size=size, **settings)

    def _post(self, endpoints: Any, common: dict[str, Any]) -> Any:
        with warnings.catch_warnings():
            # The client marks the call as deprecated, since OpenAI itself no longer answers it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return endpoints.create_variation(**common, response_format="b64_json")


class OpenAIEdit(_OpenAIImages):
    """``POST /images/edits``: an image and one fixed, neutral prompt in, an image out. What OpenAI has today.

    ``quality`` is low, medium, high and what else the model knows. ``input_fidelity``, high or low, says how close to
    keep to the image. None of either is not sent. The other settings are those of `_OpenAIImages`.
    """

    name = "openai_edit"
    endpoint = "images/edits"
    advice = "Name a model that it has with generator.model=NAME, or another server with generator.base_url=…"
    largest_file = 50 * 10**6

    def __init__(
        self, *, prompt: str, quality: str | None, input_fidelity: str | None, size: int | None, **settings: Any
    ) -> None:
        if size is not None and (size < 256 or size % 16):
            raise InputError(f"generator.size={size} must be a multiple of 16, 256 at least; models take 1024")
        if not prompt.strip():
            raise InputError("generator.prompt must not be empty")
        super().__init__(size=size, **settings)
        self.prompt, self.quality, self.input_fidelity = prompt, quality, input_fidelity
        if self.price is None:
            host = str(urlsplit(self.base_url).hostname)
            self.price = openai_prices.list_price(host, self.model_name, size, quality, input_fidelity)

    def _optional(self) -> dict[str, str]:
        """What is sent only where it is set."""
        optional = {"quality": self.quality, "input_fidelity": self.input_fidelity}
        return {name: value for name, value in optional.items() if value is not None}

    def _sent(self) -> dict[str, Json]:
        return super()._sent() | {"prompt": self.prompt, "quality": self.quality, "input_fidelity": self.input_fidelity}

    def _post(self, endpoints: Any, common: dict[str, Any]) -> Any:
        return endpoints.edit(**common, **self._optional(), prompt=self.prompt, output_format="png")
