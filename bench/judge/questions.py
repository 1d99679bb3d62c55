"""What a judge is asked about a latent, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from bench.store import digest


@dataclass(frozen=True)
class Window:
    """A stretch of text as tokens.

    Args:
        tokens: Text of each token; joined, they are the text.
        codes: The latent's code on each token, 0 where it is inactive.
    """

    tokens: tuple[str, ...]
    codes: tuple[float, ...]

    @property
    def text(self) -> str:
        """The text as a reader sees it."""
        return "".join(self.tokens)


@dataclass(frozen=True)
class Explain:
    """What does this latent stand for?

    Args:
        examples: Windows on which it is active, the strongest first.
        contrast: Windows on which it is not; a language model is not shown them.
    """

    examples: tuple[Window, ...]
    contrast: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Detect:
    """On which of these windows is a latent with this explanation active?

    Args:
        explanation: As a judge gave it.
        windows: Tokens of each window, without codes. One window asks for yes or no, several for a list.
    """

    explanation: str
    windows: tuple[tuple[str, ...], ...]


Question = Explain | Detect
Status = Literal["ok", "unscored", "failed"]


@dataclass(frozen=True)
class Answer:
    """What a judge said to one question.

    Args:
        prompt: SHA-256 of all that was asked, and of whom.
        raw: The answer as it came.
        status: `unscored` where the answer says nothing that can be read, `failed` where none came.
        explanation: To `Explain`, if ok.
        said: To `Detect`, if ok: whether the latent is active on each window.
        score: Likewise, how sure that it is: larger is surer; above ½ where it is said to be.
    """

    prompt: str
    raw: str
    status: Status
    explanation: str = ""
    said: tuple[bool, ...] = ()
    score: tuple[float, ...] = ()


@dataclass(frozen=True)
class Spending:
    """What answers cost.

    Args:
        calls: Answers that were paid for.
        cached: Answers that were there already.
        tokens_in: Of the calls.
        tokens_out: Of the calls.
        usd: None where the price is unknown.
    """

    calls: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = None


@runtime_checkable
class Judge(Protocol):
    """Explains latents and detects them by their explanations."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Who explains and who detects: all that can change an answer, but not where the server is or what it costs."""
        ...

    @property
    def spending(self) -> Spending:
        """What was asked of it so far."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer to every question, in order.

        Raises:
            JudgeError: The budget is used up, or the server refuses every call. What was answered is kept, and not paid
                for again.
        """
        ...


def prompt_hash(*parts: Any) -> str:
    """Identity of a question to somebody."""
    return digest([_plain(p) for p in parts])


def _plain(part: Any) -> Any:
    if isinstance(part, Explain):
        return ["explain", *([[w.tokens, w.codes] for w in some] for some in (part.examples, part.contrast))]
    return ["detect", part.explanation, part.windows] if isinstance(part, Detect) else part
