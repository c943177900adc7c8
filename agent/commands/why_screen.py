"""`tandem why` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agent.commands.screen import Screen, money, number, when
from agent.commands.votes_screen import TARGETS, vote_rows


def show_explanation(found: Mapping[str, Any], *, asked: datetime | None, utc_assumed: bool) -> None:
    """Write one screen out of `agent.explain.explain`."""
    screen = Screen()
    close = found["close_time"]
    screen.say(f"{found['symbol']}, bar that closed {when(close)}" if close is not None else found["symbol"])
    if asked is not None and (utc_assumed or asked != close):
        assumed = " (no zone given: UTC assumed)" if utc_assumed else ""
        screen.say(f"asked for {when(asked)}{assumed}; the close at or next after it is shown")
    if found["decided"]:
        _decided(screen, found)
    else:
        screen.say(f"no decision: {found['text']}")
        times = ("first_close", "last_close", "previous_close", "following_close", "started_venue_at")
        screen.pairs([(key.replace("_", " "), when(found[key])) for key in times if found.get(key) is not None])
    if found["incidents"]:
        screen.title("Incidents")
        rows = [(when(row["at"]), row["kind"], row["symbol"], row["detail"]) for row in found["incidents"]]
        screen.table(("venue time", "kind", "symbol", "what"), rows)


def _decided(screen: Screen, found: Mapping[str, Any]) -> None:
    decision = found["decision"]
    before = TARGETS[decision["position_before"]]
    screen.pairs(
        [
            ("bar", _bar(found["bar"])),
            ("decision", f"{decision['action']}: from {before}, wants {TARGETS[decision['target']]}"),
            ("reason", f"{decision['reason']}: {decision['reason_text']}"),
            ("outcome", f"{decision['outcome']}: {decision['outcome_text']}"),
            ("position", _position(decision)),
            ("equity", _equity(found["equity"])),
        ]
    )
    screen.title("Votes")
    screen.pairs(list(vote_rows(found["votes"], decision["position_before"])))
    screen.title("Gate, size and exits")
    rows = [("gate", _gate(found["gate"]))]
    if found["sizing"] is not None:
        rows.append(("size", _sizing(found["sizing"])))
    if found["exits"] is not None:
        rows += _exits(found["exits"])
    screen.pairs(rows)
    _intents(screen, found["intents"])
    if found["fills_in_bar"]:
        screen.title("Executions within this bar, before the decision")
        _fills(screen, found["fills_in_bar"])


def _position(decision: Mapping[str, Any]) -> str:
    before, after = TARGETS[decision["position_before"]], TARGETS[decision["position_after"]]
    held_before, held_after = number(decision["held_before"]), number(decision["held_after"])
    return f"{before} ({held_before}) at the close, {after} ({held_after}) {decision['after']}"


def _bar(bar: Mapping[str, Any]) -> str:
    if bar["source"] == "none":
        return str(bar["detail"])
    prices = ", ".join(f"{name} {number(bar[name])}" for name in ("open", "high", "low", "close", "volume"))
    told = f"started {when(bar['start'])}; {prices}"
    if bar["adj_factor"] != 1.0:
        told += f", adj_factor {number(bar['adj_factor'])}"
    told += "".join(f", {name} {number(value)}" for name, value in (bar["signals"] or {}).items())
    told += "" if bar["source"] == "ledger" else f" (from the {bar['source']})"
    for revised in bar["revisions"]:
        told += f"; revision {revised['revision']}: close {number(revised['close'])}"
    return told


def _equity(equity: Mapping[str, Any] | None) -> str:
    if equity is None:
        return "not recorded"
    return f"{money(equity['equity'])} USD, cash {money(equity['cash'])} USD, exposure {equity['gross_exposure']:.1%}"


def _gate(gate: Mapping[str, Any]) -> str:
    told = gate["verdict"].replace("_", " ")
    if "reason" in gate:
        told += f", {gate['reason']}"
    if "from" in gate:
        told += f", from {gate['from']} to {gate['to']}"
    return f"{told}: {gate['text']}"


def _sizing(sizing: Mapping[str, Any]) -> str:
    told = f"{number(sizing['qty'])} units, {money(sizing['notional'])} USD"
    if sizing["fraction_of_equity"] is not None:
        told += f", {sizing['fraction_of_equity']:.1%} of equity"
    if sizing["volatility"] is not None:
        told += f"; volatility {sizing['volatility']:.4%} a bar"
    return f"{told}; predicted cost {sizing['predicted_cost_fraction'] * 1e4:.2f} bp a side"


def _exits(exits: Mapping[str, Any]) -> list[tuple[str, str]]:
    told = [f"{name.replace('_', '-')} {number(exits[name])}" for name in ("stop", "take_profit") if exits.get(name)]
    if exits.get("max_loss_usd") is not None:
        told.append(f"largest loss {money(exits['max_loss_usd'])} USD")
    if exits.get("entry_close") is not None:
        told.append(f"of the entry decided {when(exits['entry_close'])}")
    rows = [("exits", "; ".join([", ".join(told), exits["text"]] if told else [exits["text"]]))]
    for leg in exits.get("legs", ()):
        at = f" at {number(leg['avg_price'])}" if leg["avg_price"] is not None else ""
        name = leg["leg"].replace("_", "-")
        rows.append((f"  {name}", f"{leg['state']}, {number(leg['filled_qty'])} of {number(leg['qty'])} filled{at}"))
    return rows


def _intents(screen: Screen, intents: Sequence[Mapping[str, Any]]) -> None:
    for intent in intents:
        note = f" ({intent['note']})" if intent["note"] else ""
        screen.title(f"Intent: {intent['side']} {number(intent['qty'])}, {intent['leg']}, {intent['state']}{note}")
        screen.pairs([("id", intent["intent_id"])])
        if not intent["orders"]:
            screen.say("  no wire attempt was made")
            continue
        rows = [
            (
                order["client_id"],
                order["leg"],
                f"{order['type']} {number(order['qty'])}",
                number(order["stop_price"] if order["stop_price"] is not None else order["limit_price"]),
                order["state"],
                order["reason"],
            )
            for order in intent["orders"]
        ]
        screen.table(("client id", "leg", "order", "price", "state", "venue's words"), rows)
        fills = [fill for order in intent["orders"] for fill in order["fills"]]
        if fills:
            _fills(screen, fills)


def _fills(screen: Screen, fills: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            when(fill["at"]),
            f"{fill['side']} {number(fill['qty'])}",
            fill["leg"],
            number(fill["price"]),
            money(fill["fee"]),
            f"{_bps(fill['predicted_fraction'])} / {_bps(fill['realised_fraction'])}",
        )
        for fill in fills
    ]
    screen.table(("filled", "qty", "leg", "price", "fee USD", "cost predicted / realised"), rows)


def _bps(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction * 1e4:.2f} bp"
