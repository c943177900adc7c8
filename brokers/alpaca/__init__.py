"""Alpaca's paper venue, and the built-in exchange which speaks the same REST.

`AlpacaBroker` gives orders and data, `SteppedClock` and `WallClock` venue time. Live trading hosts are refused
before any key is read. Nothing here is imported by the other venues.
"""

from brokers.alpaca.broker import AlpacaBroker
from brokers.alpaca.client import AlpacaClient, inline
from brokers.alpaca.convert import LEGS_MISSING
from brokers.alpaca.settings import AlpacaSettings
from brokers.alpaca.stepping import Advance, SteppedClock, WallClock

__all__ = [
    "LEGS_MISSING",
    "Advance",
    "AlpacaBroker",
    "AlpacaClient",
    "AlpacaSettings",
    "SteppedClock",
    "WallClock",
    "inline",
]
