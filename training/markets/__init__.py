"""Worlds with a known optimum: bars, the hidden state behind them, the exact best policy, and the score against it.

`world` says what a world is, `solver` finds its best policy, `bench` scores rules, strategies and bundles by the
fraction of the optimum that they capture. Each world has a module of its own.
"""
