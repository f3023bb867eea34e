"""Calls to a host of OpenAI's protocol: repeated tries, reasons of failures, and a spool of paid answers.

Answers are paid for, so each is written to a file as received, and is not asked for again after a kill.

The official client is used with its own retries off. It asks again after errors that remain (429 with
insufficient_quota), waits eight seconds at most, and does not repeat calls whose images came cut short.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from boxtwin.datasets.image_io import Pixels, decode_image
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically
from boxtwin.synthesis.constants import LONGEST_WAIT
from boxtwin.synthesis.generator import check_settings
from boxtwin.synthesis.squares import NotSquareError

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
# Error codes of the API, as its guide to error codes and its answers have them.
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_NO_MODEL = ("model_not_found", "model_not_available", "model_deprecated")
_MODERATED = ("moderation_blocked", "content_policy_violation")
_LIKE_A_KEY = re.compile(r"\bsk-\S*|\S*\*{3,}\S*")
_WRONG_KEY = re.compile(r"(?i)(incorrect|invalid|wrong|missing|expired|revoked).{0,40}(key|authentication|credential)")
# Settings that a host may not take, and how a message names one that it refuses.
_SETTING = re.compile(r"['\"`](size|quality|input_fidelity)['\"`]")
_MOST = 400  # characters of an answer of another form that are repeated
_AGAIN = (408, 409, 429)  # and 5xx


class ImageFailedError(Exception):
    """One image failed, for a reason that may hold for the next one too."""


class ModeratedError(ImageFailedError):
    """The host refused to touch one image."""


class _DamagedError(Exception):
    """An answer without an image that can be used: worth asking once more."""


class Answer(NamedTuple):
    """An image."""

    pixels: Pixels
    from_spool: bool  # it was there before


@dataclass(kw_only=True)
class Calls:
    """The calls to one host."""

    base_url: str  # its address
    wanted: str  # endpoint and model, for messages
    advice: str  # what to do when the host does not have them any more
    timeout: float  # seconds that it may take for one answer
    max_tries: int  # how often one image is asked for, on rate limits, 5xx, broken connections and damaged images
    # Seconds before the second try, doubled for each further one, less up to half at random; or else Retry-After.
    first_wait: float
    lost: int = field(default=0, init=False)  # answers that came and could not be used: paid for all the same
    limit: int | None = field(default=None, init=False)  # how many answers may be paid for; None: any number
    paid: int = field(default=0, init=False)  # answers that came, and calls without one that the host may bill

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        # The messages are without the address, which may hold a password.
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("generator.base_url must be an address such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            cure = f"settings are written down. A key belongs in the environment variable {KEY}"
            raise InputError(f"generator.base_url must hold no user, password or query: {cure}")
        check_settings("generator", self, max_tries=1, first_wait=0)
        if not self.timeout > 0:
            raise InputError(f"generator.timeout={self.timeout} must be above 0")
        self.base_url = self.base_url.rstrip("/")
        self._random = random.Random()  # of waits: processes must not all come back at once

    def check(self) -> None:
        """Check that there is a key, and a client to use it; raises InputError if not."""
        if not (key := os.environ.get(KEY, "")):
            raise InputError(f"a key for {self.base_url} must be in the environment variable {KEY}")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise InputError(f"{KEY} holds spaces, line breaks or other characters that no key has: set it anew")
        try:
            import openai  # noqa: F401
        except ImportError:
            raise InputError("the openai client is missing: pip install 'boxtwin[openai]'") from None

    def open(self) -> openai.OpenAI:
        """A client, to be closed. The key stays in it: nothing here keeps it where it could be printed."""
        import openai

        return openai.OpenAI(api_key=os.environ[KEY], base_url=self.base_url, timeout=self.timeout, max_retries=0)

    def image(self, post: Callable[[], Any], spooled: Path, read: Callable[[Pixels], Pixels]) -> Answer:
        """One image: from the file ``spooled``, or asked for with ``post`` until it is there.

        ``read`` makes of an image what is wanted, and raises ValueError if it cannot be used.

        Raises:
            InputError: the host refuses key, model, endpoint or payment, or `limit` is reached.
            ImageFailedError, ModeratedError: this one image failed.
        """
        import openai

        if spooled.exists():
            try:
                return Answer(self._decode(spooled.read_bytes(), read), from_spool=True)
            except (_DamagedError, InputError) as problem:
                log.info("%s cannot be used, so it is asked for again: %s", spooled, problem)
        reason = ""
        for tries in range(1, self.max_tries + 1):
            if self.limit is not None and self.paid >= self.limit:
                raise InputError(
                    f"the budget is used up: it allows {self.limit} images of {self.base_url}, and as many may be "
                    "billed, since some came damaged or not at all. What was made is kept; the same command goes on"
                )
            wait: float | None = None
            try:
                content = post().http_response.content
                self.paid += 1
                write_bytes_atomically(spooled, content)
                return Answer(self._decode(content, read), from_spool=False)
            except _DamagedError as damage:
                self.lost += 1
                reason = str(damage)
            except openai.APIStatusError as error:
                reason = self._reason_to_repeat(error)
                wait = _retry_after(error.response.headers)
            except openai.APITimeoutError:
                self.paid += 1
                reason = f"no answer within {self.timeout:g} s"
            except openai.APIConnectionError as error:
                self.paid += 1
                reason = _without_key(f"connection failed: {error.__cause__ or error}")
            if tries < self.max_tries:
                self._wait(tries, wait, reason)
        raise ImageFailedError(f"failed in {self.max_tries} tries: {reason}")

    def _wait(self, tries: int, asked_for: float | None, reason: str) -> None:
        if asked_for is not None and asked_for > LONGEST_WAIT:
            raise ImageFailedError(f"the host wants a wait of {asked_for:.0f} s, over {LONGEST_WAIT:g} s: {reason}")
        if asked_for is None:
            asked_for = min(self.first_wait * 2 ** (tries - 1), LONGEST_WAIT) * self._random.uniform(0.5, 1.0)
        log.info("%s; once more in %.1f s", reason, asked_for)
        time.sleep(asked_for)

    def _reason_to_repeat(self, error: openai.APIStatusError) -> str:
        """The reason for trying once more; other errors are raised, without text of the host that may hold the key."""
        code = str(error.code or "")
        message = _field(error.body, "message") or f"{error.message} {error.body or ''}"[:_MOST].strip()
        message = _without_key(str(message))
        status = f"{error.status_code}{f' {code}' if code else ''}"
        refusal = ""
        named = _SETTING.search(f"'{error.param}' {message}") if error.status_code in (400, 422) else None
        if code in _NO_MODEL or error.status_code in (404, 410) or error.param == "model":
            refusal = f"has no {self.wanted} ({status}). {self.advice}"
        elif code == "invalid_api_key" or (error.status_code == 401 and _WRONG_KEY.search(message)):
            # What the host says of a key may hold parts of it.
            refusal = f"does not take the key in {KEY} ({status}); nothing more was asked for"
        elif error.status_code in (401, 403):  # the key is known; its organisation, country or project may not do it
            refusal = f"refuses {self.wanted} ({status}): {message}; nothing more was asked for"
        elif code in _NO_MONEY or error.status_code == 402:
            refusal = f"wants money first ({status}): {message}. Then the same command goes on"
        elif named and code not in _MODERATED:
            cure = f"choose another value, or generator.{named[1]}=null, which sends none"
            refusal = f"does not take generator.{named[1]} as it is ({status}): {message}; {cure}"
        if refusal:
            raise InputError(f"{self.base_url} {refusal}") from None
        if code in _MODERATED:
            raise ModeratedError(f"refused by the host's moderation ({status}): {message}") from None
        if error.status_code not in _AGAIN and error.status_code < 500:
            raise ImageFailedError(f"{status}: {message}") from None
        return f"{status}: {message}"

    def _decode(self, content: bytes, read: Callable[[Pixels], Pixels]) -> Pixels:
        try:
            first = json.loads(content)["data"][0]
        except (ValueError, KeyError, TypeError, IndexError):
            raise _DamagedError("an answer came without an image, or was cut short") from None
        if not (encoded := _field(first, "b64_json")):
            sent = ", ".join(first) if isinstance(first, dict) else type(first).__name__
            raise InputError(f"{self.base_url} sends no b64_json, only {sent}; no other form is understood")
        try:
            return read(decode_image(base64.b64decode(encoded, validate=True), "the image"))
        except NotSquareError as error:  # the next one would be no other, and cost as much
            cure = "choose a size that it gives squares of (generator.size=1024), or another host"
            raise InputError(f"{self.base_url}: {error}; {cure}. What was made before is kept") from None
        except (OSError, ValueError, binascii.Error) as error:
            raise _DamagedError(f"an image came damaged: {error}") from None


def _without_key(text: str) -> str:
    """Without the key, and without words that look like a part of one, as in "sk-ab***yz"."""
    return _LIKE_A_KEY.sub(f"[{KEY}]", text.replace(os.environ[KEY], f"[{KEY}]"))


def _field(body: object, key: str) -> Any:
    return body.get(key) if isinstance(body, dict) else None


def _retry_after(headers: Any) -> float | None:
    """Seconds that a host asks to wait: a number, or a date (RFC 9110, section 10.2.3); None where it does not say."""
    for header, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(header, "")
        try:
            seconds = float(value) / unit
        except ValueError:
            date = email.utils.parsedate_tz(value)
            seconds = math.nan if date is None else email.utils.mktime_tz(date) - time.time()
        if not math.isnan(seconds):
            return max(seconds, 0.0)
    return None
