"""Live: the daemon, risk, orders, ledger, replay, health and commands. Never imports `training`."""
