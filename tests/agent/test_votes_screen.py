"""How a policy's vote is told: in basis points, with signs, and without what belongs to another close."""

from __future__ import annotations

from typing import Any

from agent.commands.votes_screen import vote_rows

MOVED = {"trend": 0.0012, "returns": -0.0003, "range": 0.0001, "volume": 0.00005, "calendar": 0.00002, "regime": 1e-5}
POLICY: dict[str, Any] = {
    "target": 1,
    "q": {"0": 0.0002, "1": 0.0011},
    "detail": {
        "spread": 0.00031,
        "attention.trend": 0.4,
        "attention.returns": 0.6,
        "exit_gain": 0.0004,
        "exit_gain_error": 0.0001,
        "favourable_q50": 0.0045,
        "adverse_q50": 0.003,
        **{f"attribution.{group}": value for group, value in MOVED.items()},
    },
    "exits": {"stop": 0.012, "take_profit": None},
}


def told(votes: dict[str, Any], position: int = 0) -> dict[str, str]:
    return {label.strip(): text for label, text in vote_rows(votes, position)}


def test_a_policy_is_told_by_what_its_choice_is_worth_beyond_what_is_held() -> None:
    rows = told({"policy": POLICY})
    assert rows["policy"] == "wants long"
    assert rows["values"] == (
        "flat +2.0 bp, long +11.0 bp; after costs going long is worth 9.0 bp more than flat, "
        "the members' spread is 3.1 bp"
    )


def test_a_position_that_is_kept_is_compared_with_the_best_of_the_others() -> None:
    values = {"-1": 0.0005, "0": 0.0, "1": 0.0011}
    rows = told({"policy": {**POLICY, "q": values}}, position=1)
    assert "staying long is worth 6.0 bp more than short" in rows["values"]


def test_the_groups_that_moved_it_most_are_named_with_their_signs_and_the_others_summed_up() -> None:
    rows = told({"policy": POLICY})
    named = "trend +12.0 bp, returns -3.0 bp, range +1.0 bp, volume +0.5 bp, 2 others +0.3 bp"
    assert rows["moved by"] == f"{named}, no group -1.8 bp"
    assert rows["attention"] == "returns 60%, trend 40%"


def test_exits_are_told_with_what_they_are_expected_to_add() -> None:
    rows = told({"policy": POLICY})
    assert rows["exits"] == (
        "stop 120.0 bp away, take-profit none; expected to add +4.0 bp +- 1.0 bp to a trade without exits"
    )
    assert "45.0 bp for it, 30.0 bp against it" in rows["reach"]


def test_exits_of_a_close_at_which_the_position_is_kept_are_said_to_be_of_an_entry_alone() -> None:
    assert told({"policy": POLICY}, position=1)["exits"].endswith("for an entry here: what is held keeps its own")


def test_a_flat_target_has_no_exits_to_tell() -> None:
    flat = {**POLICY, "target": 0}
    assert {"exits", "reach"} & told({"policy": flat}).keys() == set()


def test_a_fused_vote_tells_what_it_adds_and_the_policy_s_numbers_stand_once() -> None:
    fused = {**POLICY, "detail": {**POLICY["detail"], "llm_weight": 1.0, "llm_effect": 0.0}, "p": {"0": 0.3, "1": 0.7}}
    spoken = {"target": 1, "q": {}, "detail": {"mass": 0.99}, "p": {"0": 0.5, "1": 0.5}, "note": "up"}
    rows = list(vote_rows({"fused": fused, "policy": POLICY, "llm": spoken}, 0))
    assert rows[0] == ("fused", "wants long; probability of flat 0.300, long 0.700; llm_weight 1, llm_effect 0")
    assert [label.strip() for label, _ in rows].count("values") == 1
    assert rows[-1] == ("llm", 'wants long; probability of flat 0.500, long 0.500; mass 0.99; it says: "up"')


def test_the_numbers_of_a_rule_are_told_by_their_names() -> None:
    assert told({"momentum": {"target": -1, "q": {}, "detail": {"score": -0.5}}}) == {
        "momentum": "wants short; score -0.5"
    }


def test_an_abstention_is_told_with_its_reason() -> None:
    vote = {"abstained": "warming_up", "detail": "12 of 300 bars"}
    assert told({"policy": vote}) == {"policy": "abstained, warming_up: 12 of 300 bars"}
