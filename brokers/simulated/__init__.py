"""The built-in exchange: a matching engine with durable books, in-process or behind an Alpaca-compatible REST face.

`engine.MatchingEngine` replays bars in venue time and fills orders by the project's one cost model;
`books` keeps its state through kill -9; `broker` speaks the `Broker`, `MarketData` and `Clock` protocols
in-process (replay, simulation); `server` is the process that any Alpaca client can talk to.
"""
