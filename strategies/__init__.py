"""What decides: features, observations, opinions, sizing, model bundles, performance.

Imports only `brokers`. A `Strategy` proposes targets; it never makes orders and never sees credentials.
"""
