"""What the language model needs of a server, and how a server fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from strategies.llm.odds import Token
from strategies.prompt import Message, one_line
from strategies.strategy import Reason

DETAIL_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class Why:
    """Why there is no answer: a reason code, and one line of detail."""

    reason: Reason
    detail: str


class AnswerFault(Exception):  # noqa: N818 -- a fault of the other side, which becomes an Abstention
    """A question that was not answered, and why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Shorten the detail, which may be the server's own words, to one printable line."""
        self.why = Why(reason, one_line(detail)[:DETAIL_CHARACTERS_MAX])
        super().__init__(f"{reason}: {self.why.detail}")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as it came.

    Args:
        content: At most `CONTENT_CHARACTERS_MAX` characters, writable as UTF-8.
        done_reason: The server's word for why the model stopped, at most 20 characters.
        latency_s: From question to answer.
        tokens: Of the whole answer; empty where the server gives no log probabilities.
    """

    content: str
    done_reason: str
    latency_s: float
    tokens: Sequence[Token] = field(default=())


class ChatServer(Protocol):
    """One model on a server. No call has a deadline of its own; each may be cancelled and raises `AnswerFault`."""

    async def chat(self, messages: Sequence[Message]) -> Reply:
        """Ask once; loads the model where it is not loaded."""
        ...

    async def digest(self) -> str:
        """Return the digest of the model that is served under the name, 64 hexadecimal digits."""
        ...

    async def is_loaded(self) -> bool:
        """Tell whether the model is in memory."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
