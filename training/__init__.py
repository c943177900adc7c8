"""Offline: environments, the DQN, evaluation. Imports `strategies` and `brokers`, never `agent`."""
