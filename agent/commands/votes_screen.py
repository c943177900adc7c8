"""What each mind said, for people: `tandem why`.

A policy's numbers are log equity; they are shown in basis points of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TARGETS = {-1: "short", 0: "flat", 1: "long"}

_SHOWN_GROUPS = 4
"""Groups that are named; the others are summed up."""
_MEDIANS = ("favourable_q50", "adverse_q50")
_GAINS = ("exit_gain", "exit_gain_error")
_GROUPED = ("attention", "attribution")
_TOLD = {"spread", *_MEDIANS, *_GAINS}
"""Numbers of a policy that are told in words; others by their names."""

Vote = Mapping[str, Any]
Row = tuple[str, str]


def vote_rows(votes: Mapping[str, Vote], position: int) -> Iterator[Row]:
    """Give labels and texts of every vote; of a fused one what it adds to those that are fused.

    Args:
        votes: By mind, as in the ledger.
        position: Held when they were asked: -1, 0 or 1.
    """
    for name, vote in votes.items():
        told_by_others = (
            [other for mind, other in votes.items() if mind != name] if "llm_weight" in _detail(vote) else []
        )
        yield name, _said(vote, told_by_others)
        if "abstained" not in vote and not any(_same_values(vote, other) for other in told_by_others):
            yield from _reasons(vote, position)


def _detail(vote: Vote) -> Mapping[str, float]:
    detail: Mapping[str, float] = vote.get("detail") or {} if "abstained" not in vote else {}
    return detail


def _same_values(vote: Vote, other: Vote) -> bool:
    return bool(vote.get("q")) and vote.get("q") == other.get("q")


def _said(vote: Vote, others: list[Vote]) -> str:
    if "abstained" in vote:
        return f"abstained, {vote['abstained']}" + (f": {vote['detail']}" if vote.get("detail") else "")
    told = f"wants {TARGETS[vote['target']]}"
    if vote.get("p"):
        told += "; probability of " + ", ".join(f"{TARGETS[int(t)]} {value:.3f}" for t, value in vote["p"].items())
    known = [_detail(other) for other in others]
    rest = {
        name: value
        for name, value in _detail(vote).items()
        if not (vote.get("q") and (name in _TOLD or name.startswith(tuple(f"{kind}." for kind in _GROUPED))))
        and not any(name in one and one[name] == value for one in known)
    }
    if rest:
        told += "; " + ", ".join(f"{name} {value:.6g}" for name, value in rest.items())
    if vote.get("note"):
        told += f'; it says: "{vote["note"]}"'
    return told


def _reasons(vote: Vote, position: int) -> Iterator[Row]:
    if not vote.get("q"):
        return
    values = {int(target): value for target, value in vote["q"].items()}
    detail, target = _detail(vote), vote["target"]
    yield "  values", _values(values, target, position, detail.get("spread"))
    if moved := _of_groups(detail, "attribution"):
        found = _contrast(values, target, position)
        yield "  moved by", _moved(moved, None if found is None else found[1])
    if seen := _of_groups(detail, "attention"):
        ranked = sorted(seen.items(), key=lambda one: -one[1])[:_SHOWN_GROUPS]
        yield "  attention", ", ".join(f"{group} {share:.0%}" for group, share in ranked)
    if target and "exits" in vote:
        yield "  exits", _exits(vote["exits"], detail, enters=target != position)
    if target and all(name in detail for name in _MEDIANS):
        best, worst = (detail[name] for name in _MEDIANS)
        yield "  reach", f"median of the farthest, over the exits' horizon: {_bp(best)} for it, {_bp(worst)} against it"


def _contrast(values: Mapping[int, float], target: int, position: int) -> tuple[int, float] | None:
    """Return what a target is compared with, and what it is worth beyond it: the position, or the best of the others.

    None where there is nothing to compare.
    """
    others = {one: value for one, value in values.items() if one != target}
    if target not in values or not others:
        return None
    against = position if position in others else max(others, key=lambda one: others[one])
    return against, values[target] - values[against]


def _values(values: Mapping[int, float], target: int, position: int, spread: float | None) -> str:
    told = ", ".join(f"{TARGETS[one]} {_bp(value, signed=True)}" for one, value in values.items())
    found = _contrast(values, target, position)
    if found is None:
        return told
    against, gap = found
    told += f"; after costs {_kept_or_taken(target, position)} is worth {_bp(gap)} more than {TARGETS[against]}"
    return told if spread is None else f"{told}, the members' spread is {_bp(spread)}"


def _kept_or_taken(target: int, position: int) -> str:
    return f"staying {TARGETS[target]}" if target == position else f"going {TARGETS[target]}"


def _of_groups(detail: Mapping[str, float], kind: str) -> dict[str, float]:
    return {name.removeprefix(f"{kind}."): value for name, value in detail.items() if name.startswith(f"{kind}.")}


def _moved(moved: Mapping[str, float], gap: float | None) -> str:
    """Tell the groups that moved a gap most; what belongs to no group are costs, the average bar and interplay."""
    ranked = sorted(moved.items(), key=lambda one: -abs(one[1]))
    told = [f"{group} {_bp(value, signed=True)}" for group, value in ranked[:_SHOWN_GROUPS]]
    if rest := [value for _, value in ranked[_SHOWN_GROUPS:]]:
        told.append(f"{len(rest)} others {_bp(sum(rest), signed=True)}")
    if gap is not None:
        told.append(f"no group {_bp(gap - sum(moved.values()), signed=True)}")
    return ", ".join(told)


def _exits(levels: Mapping[str, float | None], detail: Mapping[str, float], *, enters: bool) -> str:
    stop, take_profit = levels["stop"], levels["take_profit"]
    told = f"stop {'none' if stop is None else f'{_bp(stop)} away'}, "
    told += f"take-profit {'none' if take_profit is None else f'{_bp(take_profit)} away'}"
    if all(name in detail for name in _GAINS) and (stop is not None or take_profit is not None):
        gain, error = (detail[name] for name in _GAINS)
        told += f"; expected to add {_bp(gain, signed=True)} +- {_bp(error)} to a trade without exits"
    return told if enters else f"{told}; for an entry here: what is held keeps its own"


def _bp(value: float, *, signed: bool = False) -> str:
    return f"{value * 1e4:{'+' if signed else ''}.1f} bp"
