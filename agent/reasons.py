"""A plain sentence for every reason code: what `tandem why` says to people."""

from __future__ import annotations

from collections.abc import Mapping

from strategies.strategy import Reason

SENTENCES: Mapping[str, str] = {
    Reason.POLICY_GREEDY: "the policy gave this target the highest value",
    Reason.RULE: "the strategy's rule asked for this target",
    Reason.LLM_VOTE: "the language model gave this target the highest probability",
    Reason.FUSED: "network and language model together gave this target the highest probability",
    Reason.DISAGREEMENT: "network and language model wanted opposite directions, so the position was kept",
    Reason.LLM_WARMING: "the language model was still being loaded; it had no vote",
    Reason.LLM_TIMEOUT: "the language model did not answer before its deadline; it had no vote",
    Reason.LLM_UNREACHABLE: "the language model's server could not be reached; it had no vote",
    Reason.LLM_BUSY: "the language model's server refused the question as too busy; it had no vote",
    Reason.LLM_BREAKER_OPEN: "the language model had failed too often and was left alone for a while; it had no vote",
    Reason.LLM_WRONG_MODEL: "the served model is not the pinned one; it had no vote",
    Reason.LLM_BAD_ANSWER: "the language model's answer was not one action in the agreed form; it had no vote",
    Reason.LLM_LOW_MASS: "the language model gave its three actions too little probability; it had no vote",
    Reason.LLM_SUPERSEDED: "a newer bar closed before the language model had answered; it had no vote",
    Reason.LLM_NOT_RECORDED: "no recorded answer of the language model fits this question; it had no vote",
    Reason.WARMING_UP: "the features had not seen enough bars yet; the position was kept",
    Reason.NO_BAR: "no bar of this close had arrived when it was decided; the position was kept",
    Reason.STALE_DATA: "the newest bar was too old to decide on (risk.stale_bars_max)",
    Reason.INCOMPLETE_BARS: "bars were missing within the features' memory; the position was kept",
    Reason.BAD_FEATURES: "a feature was not a finite number; the position was kept",
    Reason.MODEL_ERROR: "the model failed; the position was kept",
    Reason.TARGET_HELD: "the position already was what the decision wants, so there was nothing to trade",
    Reason.ORDER_WORKING: "an order of this symbol was still working at the venue, so none was added",
    Reason.BELOW_MINIMUM: "the order would have been smaller than the venue's smallest",
    Reason.SHORTS_OFF: "the strategy wanted to go short, and strategy.shorts is off",
    Reason.NO_VOLATILITY: "the volatility was not known, so no size and no exits could be computed",
    Reason.NO_BUYING_POWER: "the buying power did not pay for the whole order",
    Reason.REJECTED: "the venue definitively refused the order",
    Reason.LATE: "the entry could not be sent before daemon.decision_deadline_s, so it was not sent",
    Reason.UNRESOLVED_ORDER: "an order's fate at the venue was not known, so nothing new was sent",
    Reason.SYMBOL_PAUSED: "entries of this symbol were paused until `tandem resume`",
    Reason.PROTECTIVE_EXIT: "the daemon's own stop or take-profit fired and closed the position",
    Reason.NO_ANSWER: "no answer came in time; nothing was assumed",
    Reason.HALTED: "entries were halted; `tandem resume` ends that",
    Reason.MAX_POSITION: "the position would have exceeded risk.max_position_fraction",
    Reason.MAX_NOTIONAL: "the order would have exceeded risk.max_gross_fraction or risk.max_order_notional_usd",
    Reason.DAILY_LOSS: "the day's loss had reached risk.daily_loss_fraction; no entries until 00:00 UTC",
    Reason.DRAWDOWN: "the drawdown exceeded risk.drawdown_fraction",
    Reason.ORDER_RATE: "the symbol had used up its entries of the hour (risk.orders_per_hour)",
    Reason.OUT_OF_RANGE: "too many features were at or beyond their stated range (risk.out_of_range_features_max)",
    Reason.REJECT_STREAK: "the venue had refused too many orders in a row (risk.reject_streak_max)",
    Reason.COOLDOWN: "a stop was hit within the last risk.cooldown_bars bars",
    Reason.TRADED: "an order of it reached the venue",
    "planned": "it was committed and not yet carried out; the daemon does that first when it goes on",
}
"""Sentence by reason code, and one for the outcome of a decision that is still being carried out."""

GATE: frozenset[str] = frozenset(
    {
        Reason.HALTED,
        Reason.SYMBOL_PAUSED,
        Reason.MAX_POSITION,
        Reason.MAX_NOTIONAL,
        Reason.DAILY_LOSS,
        Reason.DRAWDOWN,
        Reason.ORDER_RATE,
        Reason.OUT_OF_RANGE,
        Reason.REJECT_STREAK,
        Reason.COOLDOWN,
        Reason.BELOW_MINIMUM,
        Reason.NO_BUYING_POWER,
        Reason.STALE_DATA,
    }
)
"""Reasons with which an entry is refused or made smaller."""


def sentence(code: str) -> str:
    """Return the plain sentence of a reason code; a code of another version stands for itself."""
    return SENTENCES.get(code, f"{code} (a reason this version does not know)")
