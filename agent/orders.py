"""Intents, and ids that come from decisions.

An intent is what a decision wants done; an order is one wire attempt at it. The intent's id is a tag of the
account scope and a hash of (account scope, symbol, bar close, side, leg); the client order id adds the attempt:
the same decision twice is the same order, and an order of another scope on the account is seen to be a stranger's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum, unique
from functools import lru_cache

from agent.ledger.schema import iso
from brokers.domain import ExitPlan, Leg, OrderRequest, OrderType, Side, TimeInForce

ID_PREFIX = "tdm-"
"""Every client order id of this program begins so, of whatever account scope; see `scope_prefix` for our own."""


@unique
class IntentState(StrEnum):
    """The life of an intent."""

    PLANNED = "planned"
    """Committed; nothing of it has been answered by the venue."""
    DONE = "done"
    """An order of it is known to the venue, or there is nothing left to do."""
    DROPPED = "dropped"
    """Given up with a reason: too late, rejected, or its attempts are used up."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One wanted change of position.

    Args:
        intent_id: `intent_id(...)` of the fields below.
        sequence: Order of execution within a close; closes come before entries.
        close_time: The bar close of the decision.
        symbol: Canonical symbol.
        side: BUY or SELL.
        leg: ENTRY, CLOSE, or STOP / TAKE_PROFIT for exits that the daemon itself fires.
        qty: Wanted quantity, > 0; a closing intent never sends more than is held.
        exits: The ExitPlan of an entry; None for closing intents.
        reference_price: Close of the decided bar, quote currency.
        predicted_cost_fraction: Cost model's prediction, per side, as a fraction of notional.
        valid_until: Venue time after which an entry must not be sent; None for closing intents.
        state: See `IntentState`.
    """

    intent_id: str
    sequence: int
    close_time: datetime
    symbol: str
    side: Side
    leg: Leg
    qty: Decimal
    exits: ExitPlan | None
    reference_price: float
    predicted_cost_fraction: float
    valid_until: datetime | None
    state: IntentState = IntentState.PLANNED


@lru_cache(maxsize=64)
def scope_prefix(scope: str) -> str:
    """Return how every client order id of an account scope begins: foreign orders are never touched."""
    return f"{ID_PREFIX}{_hash(scope, 6)}-"


def intent_id(scope: str, symbol: str, close_time: datetime, side: Side, leg: Leg) -> str:
    """Return the id of a decision's intent: the scope's prefix and 24 base-32 characters (120 bits) of a SHA-256."""
    # not out of `iso`'s memory: a replay asks for each close once
    text = "\x1f".join((scope, symbol, iso.__wrapped__(close_time), side, leg))
    return scope_prefix(scope) + _hash(text, 24)


def client_order_id(intent: str, attempt: int) -> str:
    """Return the client order id of one attempt (1, 2, ...) at an intent."""
    return f"{intent}-{attempt}"


def request_of(intent: Intent, client_id: str, qty: Decimal, *, at_venue: bool) -> OrderRequest:
    """Return the wire order of an intent: a market order, with its exits where the venue can hold them."""
    exits = intent.exits if at_venue else None
    return OrderRequest(
        client_id=client_id,
        symbol=intent.symbol,
        side=intent.side,
        qty=qty,
        type=OrderType.MARKET,
        tif=TimeInForce.GTC,
        take_profit=exits.take_profit if exits is not None else None,
        stop_loss=exits.stop if exits is not None else None,
        leg=intent.leg,
    )


def _hash(text: str, characters: int) -> str:
    """Return the first base-32 characters (RFC 4648, small letters) of a SHA-256; an even number of them."""
    bits = 5 * characters
    size = (bits + 7) // 8
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:size]) >> 8 * size - bits
    return "".join([_PAIRS[number >> shift & 1_023] for shift in range(bits - 10, -1, -10)])


_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = [first + second for first in _LETTERS for second in _LETTERS]
"""Ten bits as two characters: `base64.b32encode` takes longer than everything else of an id."""
