"""`tandem status` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agent.commands.screen import Screen, halted, money, number, span, when
from agent.reasons import sentence

_TARGETS = {-1: "short", 0: "flat", 1: "long"}


def show_status(found: Mapping[str, Any], now: datetime) -> None:
    """Write one screen out of `agent.overview.overview`."""
    screen = Screen()
    voice = found["language_model"]
    minds = [] if voice is None else [("language model", _voice(voice))]
    screen.pairs([("ledger", found["ledger"]), *_daemon(found, now), *minds, ("entries", _entries(found))])
    if found["account"] is not None:
        _account(screen, found["account"])
    _positions(screen, found["positions"])
    _orders(screen, "Working orders", found["working_orders"])
    _orders(screen, "Unresolved orders (the venue will be asked by client id, nothing is sent again)", found)
    _planned(screen, found["planned_intents"])
    _last_close(screen, found["last_close"])
    if found["last_24h"]:
        screen.title("Decisions of the last 24 h (venue time)")
        counts = [(row["decisions"], row["reason"], row["outcome"]) for row in found["last_24h"]]
        screen.table(("count", "reason", "outcome"), counts)
    if found["incidents"]:
        screen.title("Last incidents")
        rows = [(when(row["at"]), row["kind"], row["symbol"], row["detail"]) for row in found["incidents"]]
        screen.table(("venue time", "kind", "symbol", "what"), rows)


def _daemon(found: Mapping[str, Any], now: datetime) -> list[tuple[str, str]]:
    run, life = found["run"], found["daemon"]
    if run is None:
        return [("daemon", "has never run on this ledger")]
    if life["state"] == "ended":
        told = f"ended {span(now - life['at'])} ago: {life['detail']}"
    elif life["state"] == "silent":
        told = f"SILENT for {span(now - life['last_sign_of_life'])}: {life['detail']}"
    else:
        told = f"running, last sign of life {span(now - life['last_sign_of_life'])} ago"
    began = f"{when(run['started_at'])} (venue time {when(run['started_venue_at'])})"
    return [
        ("daemon", told),
        ("run", f"{run['run_id']}, version {run['version']}, started {began}"),
        ("strategy", f"{run['strategy']} ({run['strategy_id']})"),
        ("venue", f"{run['venue']}, account scope {run['account_scope']}"),
    ]


def _voice(voice: Mapping[str, Any]) -> str:
    told = f"voted on {voice['voted']} of the last {voice['decisions']} decisions"
    if voice["weight"] is not None:
        share = f"{voice['changed_share']:.1%}"
        told += f" with weight {voice['weight']:g}, which changed the target of {voice['changed_target']} ({share})"
    if voice["abstained"]:
        told += "; abstained: " + ", ".join(f"{reason} {count}" for reason, count in voice["abstained"].items())
    return told


def _entries(found: Mapping[str, Any]) -> str:
    halt = found["halt"]
    told = []
    if halt.get("halted"):
        told.append(f"HALTED {halted(halt)}")
    told += [f"{symbol} PAUSED ({why})" for symbol, why in sorted(found["paused"].items())]
    told += [f"{symbol}: {count} orders refused in a row" for symbol, count in sorted(found["rejects"].items())]
    return "; ".join(told) + " (`tandem resume` ends that)" if told else "allowed"


def _account(screen: Screen, account: Mapping[str, Any]) -> None:
    screen.title(f"Account at the close of {when(account['close_time'])}")
    screen.pairs(
        [
            ("equity", f"{money(account['equity'])} USD, cash {money(account['cash'])} USD"),
            ("peak", f"{money(account['peak'])} USD, drawdown {account['drawdown']:.2%}"),
            ("day", f"{money(account['day_change'])} USD ({account['day_change_fraction']:+.2%}) since 00:00 UTC"),
            ("exposure", f"{account['gross_exposure']:.1%} of equity"),
        ]
    )


def _positions(screen: Screen, positions: Sequence[Mapping[str, Any]]) -> None:
    screen.title("Positions")
    if not positions:
        screen.say("  none")
        return
    rows = [
        (
            row["symbol"],
            number(row["qty"]),
            number(row["avg_cost"]),
            number(row["last_price"]),
            money(row["unrealised"]),
            number(row["stop"]),
            number(row["take_profit"]),
            _guard(row),
        )
        for row in positions
    ]
    screen.table(("symbol", "qty", "cost", "last", "unrealised", "stop", "take-profit", "guarded by"), rows)


def _guard(row: Mapping[str, Any]) -> str:
    if row["guard"] == "NONE":
        return "NOBODY: no exits"
    guard = "the venue" if row["guard"] == "venue" else "the daemon"
    if row["stop"] is None:
        guard += f", at a loss of {money(row['max_loss_usd'])} USD"
    return guard if row["guarded_now"] else f"{guard}, which is NOT RUNNING"


def _orders(screen: Screen, title: str, orders: Any) -> None:
    rows = orders["unresolved_orders"] if isinstance(orders, Mapping) else orders
    if not rows:
        return
    screen.title(title)
    cells = [
        (
            row["symbol"],
            f"{row['side']} {row['leg']}",
            f"{number(row['filled_qty'])} of {number(row['qty'])}",
            number(row["stop_price"] if row["stop_price"] is not None else row["limit_price"]),
            row["state"],
            row["client_id"],
        )
        for row in rows
    ]
    screen.table(("symbol", "order", "filled", "price", "state", "client id"), cells)


def _planned(screen: Screen, intents: Sequence[Mapping[str, Any]]) -> None:
    if not intents:
        return
    screen.title("Intents that are committed and not yet carried out")
    rows = [
        (row["symbol"], f"{row['side']} {row['leg']}", number(row["qty"]), when(row["close_time"])) for row in intents
    ]
    screen.table(("symbol", "order", "qty", "decided at the close of"), rows)


def _last_close(screen: Screen, closes: Sequence[Mapping[str, Any]]) -> None:
    if not closes:
        return
    screen.title(f"Last close, {when(closes[0]['close_time'])}")
    rows = [
        (
            row["symbol"],
            number(row["price"]),
            row["action"],
            f"{_TARGETS[row['position']]} -> {_TARGETS[row['target']]}",
            row["reason"],
            f"{row['outcome']}: {sentence(row['outcome'])}",
        )
        for row in closes
    ]
    screen.table(("symbol", "price", "action", "position -> target", "reason", "outcome"), rows)
