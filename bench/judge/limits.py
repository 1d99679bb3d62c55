"""How many calls may be in flight, and how many may be made at all. Plain state; the clock is an argument."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from bench.errors import UsageError

Price = tuple[float, float]  # USD per million tokens, in and out
START = 4


def price_of(text: str) -> Price | None:
    """`IN,OUT` in USD per million tokens; None for an empty text.

    Raises:
        UsageError: It is something else.
    """
    if not text.strip():
        return None
    try:
        tokens_in, tokens_out = (float(part) for part in text.split(","))
    except ValueError:
        tokens_in = tokens_out = math.nan
    if not (0 <= tokens_in < math.inf and 0 <= tokens_out < math.inf):
        raise UsageError(f"the price {text!r} is not IN,OUT", "give --judge-price 0.15,0.60 in USD per million tokens")
    return tokens_in, tokens_out


def cost(price: Price, tokens_in: int, tokens_out: int) -> float:
    """USD for so many tokens."""
    return (tokens_in * price[0] + tokens_out * price[1]) / 1e6


def most_tokens(body: Mapping[str, Any]) -> int:
    """More tokens than a request can have: a token is at least a byte, and the template of a chat adds a few."""
    return len(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")) + 100


def retry_after(headers: Mapping[str, str], clock: float) -> float | None:
    """Seconds that a server asks to wait, given as seconds or as an HTTP date; None where it says nothing.

    Args:
        headers: Of its response.
        clock: Seconds since 1970.
    """
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - clock
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


class Pace:
    """Additive increase, multiplicative decrease of the calls in flight.

    Args:
        most: Calls in flight at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(START, most)
        self._successes = 0
        self._cut_at = -math.inf
        self._quiet_until = -math.inf

    def wait(self, now: float) -> float:
        """Seconds until calls may start again."""
        return max(self._quiet_until - now, 0.0)

    def succeeded(self) -> None:
        """One call more for each full round of successes."""
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit = min(self.limit + 1, self.most)

    def refused(self, started: float, now: float) -> None:
        """Too many requests: half as many, once for all calls that were in flight together."""
        if started > self._cut_at:
            self._cut_at = now
            self._successes = 0
            self.limit = max(self.limit // 2, 1)

    def quiet(self, until: float) -> None:
        """Nobody starts a call before then."""
        self._quiet_until = max(self._quiet_until, until)


@dataclass
class Budget:
    """A bound that no call may cross: what is spent, what may be spent by the calls in flight, and this one.

    Args:
        calls: Requests at most, 0 for no bound. A request that ends in an error is one, too.
        usd: Likewise; a request that may have been paid for counts with all it can cost.
    """

    calls: int = 0
    usd: float = 0.0
    started: int = 0
    spent: float = 0.0
    held: float = 0.0

    def forbids(self, most: float) -> str:
        """Which bound a call would cross that costs at most so much; empty if none.

        Args:
            most: USD.
        """
        if self.calls and self.started >= self.calls:
            return "calls"
        return "usd" if self.usd and self.spent + self.held + most > self.usd else ""

    def begin(self, most: float) -> None:
        """A call starts."""
        self.started += 1
        self.held += most

    def end(self, most: float, actual: float) -> None:
        """It has ended and cost that."""
        self.held -= most
        self.spent += actual
