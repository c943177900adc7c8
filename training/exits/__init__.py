"""Exits that are learned: where a position's stop and take-profit belong, as a function of the market's state.

`settings` is light; `labels` says what every bracket would have earned on every bar, `rows` takes them from a market
table, `network` is the head that is exported, `fit` trains and calibrates it, `bench` scores it in worlds whose best
bracket is known, `coverage` measures its quantiles on bars it has not seen.
"""
