"""The market side: what a bar, an order and a fill are, and where they come from.

Imports nothing of the other packages. `brokers.domain` holds the types, `brokers.protocol`
what every venue gives, `brokers.costs` and `brokers.account` the one cost model and the one
account function which training, replay, the built-in exchange and the ledger share.
"""
