"""Calls to a host of OpenAI's protocol that nothing paid for is lost by: patience, plain reasons, a spool.

Answers are paid for, so each is written as received to a file before anything is done with it. Who is killed after that
finds it there and does not ask again.

The official client is used with its own retries off. It does honour Retry-After, but asks again for what asking again
cannot mend (429 with insufficient_quota), waits eight seconds at most where a rate limit lasts a minute, and knows
nothing of images that came cut short, which are to count among the tries.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from boxtwin.datasets.image_io import Pixels, decode_image
from boxtwin.errors import InputError
from boxtwin.files import write_bytes_atomically

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
# Error codes of the API, as its guide to error codes and its answers have them.
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_NO_MODEL = ("model_not_found", "model_not_available", "model_deprecated")
_MODERATED = ("moderation_blocked", "content_policy_violation")
_LIKE_A_KEY = re.compile(r"\bsk-\S*|\S*\*{3,}\S*")
_WRONG_KEY = re.compile(
    r"(incorrect|invalid|wrong|missing|expired|revoked).{0,40}(key|authentication|credential)", re.I
)
_AGAIN = (408, 409, 429)  # and 5xx


class NotHadError(Exception):
    """One image could not be had, for a reason that may well hold for the next one too."""


class ModeratedError(Exception):
    """The host refused to touch one image."""


class _DamagedError(Exception):
    """An answer without an image that can be used: worth asking once more."""


class Answer(NamedTuple):
    """An image, and what it took."""

    pixels: Pixels
    received: int  # answers with or without a usable image: what was paid for
    from_spool: bool  # it was there before


class Calls:
    """The calls to one host.

    Args:
        base_url: its address.
        wanted: endpoint and model, for messages.
        advice: what to do when the host does not have them any more.
        timeout: seconds that it may take for one answer.
        max_tries: how often one image is asked for, on rate limits, 5xx, broken connections and damaged images.
        first_wait: seconds before the second try, doubled for every further one and shortened by up to half at random;
            a Retry-After of the host counts instead.
        longest_wait: seconds; a host that wants more is not waited for.
    """

    def __init__(
        self,
        *,
        base_url: str,
        wanted: str,
        advice: str,
        timeout: float,
        max_tries: int,
        first_wait: float,
        longest_wait: float,
    ) -> None:
        _check_url(base_url)
        if max_tries < 1:
            raise InputError(f"generator.max_tries={max_tries} must be at least 1")
        for setting, seconds in (("first_wait", first_wait), ("longest_wait", longest_wait)):
            if not seconds >= 0:
                raise InputError(f"generator.{setting}={seconds} must not be negative")
        if not timeout > 0:
            raise InputError(f"generator.timeout={timeout} must be above 0")
        self.base_url, self.wanted, self.advice = base_url.rstrip("/"), wanted, advice
        self.timeout, self.max_tries, self.first_wait, self.longest_wait = timeout, max_tries, first_wait, longest_wait
        self._random = random.Random()  # of waits: processes must not all come back at once

    def check(self) -> None:
        """Whether there is a key, and a client to use it.

        Raises:
            InputError: there is not.
        """
        key = os.environ.get(KEY, "")
        if not key:
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
        """One image: from the spool, or asked for until it is there.

        Args:
            post: one call; its raw response.
            spooled: where the answer is kept, named by all that it follows from.
            read: what is made of the image; raises ValueError where it cannot be used.

        Raises:
            InputError: the host does not take the key, wants money, or has neither model nor endpoint any more.
            NotHadError, ModeratedError: this one image is not to be had.
        """
        import openai

        if spooled.exists():
            try:
                return Answer(self._decode(spooled.read_bytes(), read), 1, from_spool=True)
            except (_DamagedError, InputError) as problem:
                log.info("%s is of no use, so it is asked for again: %s", spooled, problem)
        received, reason = 0, ""
        for tries in range(1, self.max_tries + 1):
            wait: float | None = None
            try:
                content = post().http_response.content
                write_bytes_atomically(spooled, content)
                received += 1
                return Answer(self._decode(content, read), received, from_spool=False)
            except _DamagedError as damage:
                reason = str(damage)
            except openai.APIStatusError as error:
                reason = self._judge(error)
                wait = _retry_after(error.response.headers)
            except openai.APITimeoutError:
                reason = f"no answer within {self.timeout:g} s"
            except openai.APIConnectionError as error:
                reason = _without_key(f"connection failed: {error.__cause__ or error}")
            if tries < self.max_tries:
                self._wait(tries, wait, reason)
        raise NotHadError(f"not had in {self.max_tries} tries: {reason}")

    def _wait(self, tries: int, asked_for: float | None, reason: str) -> None:
        if asked_for is not None and asked_for > self.longest_wait:
            raise NotHadError(
                f"the host wants a wait of {asked_for:.0f} s, over longest_wait={self.longest_wait:g}: {reason}"
            )
        if asked_for is None:
            longest = min(self.first_wait * 2 ** (tries - 1), self.longest_wait)
            asked_for = longest * self._random.uniform(0.5, 1.0)
        log.info("%s; once more in %.1f s", reason, asked_for)
        time.sleep(asked_for)

    def _judge(self, error: openai.APIStatusError) -> str:
        """The reason for trying once more; the rest is raised, without words of the host that may hold the key."""
        code = str(error.code or "")
        said = _without_key(str(_field(error.body, "message") or error.message))
        about_the_key = code == "invalid_api_key" or (error.status_code == 401 and _WRONG_KEY.search(said) is not None)
        status = f"{error.status_code}{f' {code}' if code else ''}"
        problem: Exception
        if code in _NO_MODEL or error.status_code in (404, 410) or error.param == "model":
            problem = InputError(f"{self.base_url} has no {self.wanted} ({status}). {self.advice}")
        elif about_the_key:
            # What the host says of a key may hold parts of it.
            problem = InputError(
                f"{self.base_url} does not take the key in {KEY} ({status}); nothing more was asked for"
            )
        elif error.status_code in (401, 403):
            # The key is known, and may not do this: an organisation, a country, an address, a project's rights.
            problem = InputError(
                f"{self.base_url} refuses {self.wanted} ({status}): {said}; nothing more was asked for"
            )
        elif code in _NO_MONEY or error.status_code == 402:
            problem = InputError(f"{self.base_url} wants money first ({status}): {said}. Then the same command goes on")
        elif code in _MODERATED:
            problem = ModeratedError(f"refused by the host's moderation ({status}): {said}")
        elif error.status_code in _AGAIN or error.status_code >= 500:
            return f"{status}: {said}"
        else:
            problem = NotHadError(f"{status}: {said}")
        raise problem from None

    def _decode(self, content: bytes, read: Callable[[Pixels], Pixels]) -> Pixels:
        try:
            first = json.loads(content)["data"][0]
        except (ValueError, KeyError, TypeError, IndexError):
            raise _DamagedError("an answer came without an image, or was cut short") from None
        encoded = _field(first, "b64_json")
        if not encoded:
            has = ", ".join(first) if isinstance(first, dict) else type(first).__name__
            raise InputError(f"{self.base_url} sends no b64_json, only {has}; no other form is understood")
        try:
            pixels = decode_image(base64.b64decode(encoded, validate=True), "the image")
            return read(pixels)
        except (OSError, ValueError, binascii.Error) as error:
            raise _DamagedError(f"an image came damaged: {error}") from None


def _check_url(base_url: str) -> None:
    parts = urlsplit(base_url)
    # Told without the address: what is wrong with it may be that it holds a password.
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("generator.base_url must be an address such as https://api.openai.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "generator.base_url must hold no user, password or query: settings are written down. "
            f"A key belongs in the environment variable {KEY}"
        )


def _without_key(text: str) -> str:
    """Without the key, and without words that look like a part of one, as in "sk-ab***yz"."""
    return _LIKE_A_KEY.sub(f"[{KEY}]", text.replace(os.environ[KEY], f"[{KEY}]"))


def _field(body: object, key: str) -> Any:
    return body.get(key) if isinstance(body, dict) else None


def _retry_after(headers: Any) -> float | None:
    """Seconds that a host asks to wait: a number, or a date (RFC 9110, section 10.2.3); None where it does not say."""
    for header, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(header)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            date = email.utils.parsedate_tz(value)
            if date is None:
                continue
            seconds = email.utils.mktime_tz(date) - time.time()
        if seconds == seconds:  # not NaN
            return max(seconds, 0.0)
    return None
