"""What deciding needs of a fast replay: the newest bars of each close, and the wired rooms of `agent.deciding`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.foresight import Foresight
from agent.trading_state import TradingState
from brokers.domain import Bar, Instrument
from strategies.decision import ExitConfig
from strategies.sizing import SizingConfig
from strategies.strategy import Strategy

if TYPE_CHECKING:
    from agent.settings import Settings
    from brokers.costs import CostModel


class NewestBars(Mapping[str, Bar]):
    """The newest bar of each symbol at one close, made where it is asked for."""

    def __init__(self, seen: Foresight) -> None:
        self._seen = seen
        self._close = -1
        self._made: dict[str, tuple[int, Bar]] = {}

    def move(self, close: int) -> None:
        """Look from another close; -1 is before the first."""
        self._close = close

    def index(self, symbol: str) -> int:
        """Return the index of a symbol's newest bar; -1 for none."""
        if self._close < 0:
            return self._seen.warm_last[symbol]
        return self._seen.symbols[symbol].last_T.item(self._close)

    def __getitem__(self, symbol: str) -> Bar:
        """Return a symbol's newest bar."""
        index = self.index(symbol)
        if index < 0:
            raise KeyError(symbol)
        made = self._made.get(symbol)
        if made is None or made[0] != index:
            made = self._made[symbol] = (index, self._seen.symbols[symbol].series.bar(index))
        return made[1]

    def get(self, symbol: str, default: Any = None) -> Any:
        """Return a symbol's newest bar; the default where there is none."""
        made, index = self._made.get(symbol), self.index(symbol)
        if made is not None and made[0] == index:
            return made[1]
        return default if index < 0 else self[symbol]

    def __iter__(self) -> Iterator[str]:
        """Give the symbols that have a bar."""
        return (symbol for symbol in self._seen.symbols if self.index(symbol) >= 0)

    def __len__(self) -> int:
        """Return how many symbols have a bar."""
        return sum(1 for _ in self)


@dataclass(slots=True)
class ReplayRooms:
    """What `Decider` asks for; see `agent.deciding.Rooms`."""

    settings: Settings
    symbols: tuple[str, ...]
    state: TradingState
    newest_bars: NewestBars
    instruments: Mapping[str, Instrument]
    costs: CostModel
    bars_per_year: float
    sizing: SizingConfig
    exits: ExitConfig
    strategy: Strategy
