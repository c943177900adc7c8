"""Crossing averages in backtesting.py, for `bench_fast_replay.py`: runs in an interpreter that has it, prints JSON.

python backtesting_cross.py BARS SEED FAST SLOW WARM
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
import pandas as pd
from backtesting import Backtest, Strategy
from gbm_bars import BEGIN_NS, MINUTE_NS, columns, means


def main() -> None:
    """Run once and print CPU seconds and the trades' bars."""
    bars, seed, fast, slow, warm = (int(text) for text in sys.argv[1:])
    table = {name.capitalize(): values for name, values in columns(bars, seed).items()}
    frame = pd.DataFrame(table, index=pd.to_datetime(BEGIN_NS + MINUTE_NS * np.arange(bars)))

    class Cross(Strategy):  # type: ignore[misc]  # the package is in the other interpreter alone
        """Long while the fast mean is above the slow one."""

        def init(self) -> None:
            """Compute the means."""
            close = np.log(self.data.Close)
            self.fast = self.I(means, close, fast)
            self.slow = self.I(means, close, slow)

        def next(self) -> None:
            """Trade."""
            if len(self.data) < warm:
                return
            above = self.fast[-1] > self.slow[-1]
            if above and not self.position:
                self.buy(size=0.45)
            elif not above and self.position:
                self.position.close()

    warnings.simplefilter("ignore")
    test = Backtest(frame, Cross, cash=100_000, commission=0.0, trade_on_close=False)
    began = time.process_time()
    result = test.run()
    spent = time.process_time() - began
    trades = result["_trades"]
    pairs = trades[["EntryBar", "ExitBar"]].to_numpy().tolist()
    sys.stdout.write(json.dumps({"cpu_s": spent, "trades": pairs}))


if __name__ == "__main__":
    main()
