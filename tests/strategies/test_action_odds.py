from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.llm.odds import (
    PROBABILITY_MIN,
    Token,
    TokensError,
    action_odds,
    calibrated,
    likeliest,
    target_of,
    target_probabilities,
)
from strategies.strategy import Action

shares = st.tuples(*[st.floats(1e-4, 1.0)] * 3).map(lambda odds: tuple(one / math.fsum(odds) for one in odds))


def tokens(*texts: str, at: int, alternatives: dict[str, float]) -> list[Token]:
    """Tokens of an answer; the one at `at` has alternatives with probabilities."""
    logs = [(text, math.log(p)) for text, p in alternatives.items()]
    return [
        Token(text, math.log(alternatives.get(text, 0.01)), logs) if place == at else Token(text, 0.0, ())
        for place, text in enumerate(texts)
    ]


def test_a_token_a_word() -> None:
    said = tokens('{"action": "', "BUY", '", "reason": ""}', at=1, alternatives={"BUY": 0.6, "SELL": 0.2, "HOLD": 0.1})
    odds = action_odds(said, Action.BUY)
    assert odds is not None
    assert odds.probabilities == pytest.approx((0.2 / 0.9, 0.1 / 0.9, 0.6 / 0.9))
    assert odds.mass == pytest.approx(0.9)


def test_all_beginnings_of_a_word_add_up_and_other_tokens_do_not_count() -> None:
    alternatives = {
        "S": 0.2,
        "SE": 0.1,
        "SELL": 0.1,
        'SELL"': 0.05,
        "B": 0.1,
        "H": 0.05,
        "sell": 0.1,
        " BUY": 0.1,
        "": 0.1,
        "SELLING": 0.05,
        "BUYS": 0.05,
    }
    odds = action_odds(tokens('{"action":"', "S", "ELL", '"}', at=1, alternatives=alternatives), Action.SELL)
    assert odds is not None
    assert odds.mass == pytest.approx(0.6)
    assert odds.probabilities == pytest.approx((0.45 / 0.6, 0.05 / 0.6, 0.1 / 0.6))


def test_a_token_may_begin_before_the_word() -> None:
    alternatives = {' "HOLD': 0.5, ' "BUY': 0.2, ' "': 0.1, "SELL": 0.1}
    odds = action_odds(tokens('{"action":', ' "HOLD', '", "reason": ""}', at=1, alternatives=alternatives), Action.HOLD)
    assert odds is not None
    assert odds.mass == pytest.approx(0.7)


def test_the_chosen_token_counts_also_where_the_list_leaves_it_out() -> None:
    said = [
        Token('{"action": "', 0.0, ()),
        Token("HOLD", math.log(0.01), [("The", math.log(0.9))]),
        Token('", "reason": ""}', 0.0, ()),
    ]
    odds = action_odds(said, Action.HOLD)
    assert odds is not None
    assert (odds.probabilities, round(odds.mass, 9)) == ((0.0, 1.0, 0.0), 0.01)


@pytest.mark.parametrize(
    "texts", [(), ("BUY",), ('{"action": "', "SELL", '"}'), ('{"action": "', "BUYING", '"}'), ('{"reason": "', "BUY")]
)
def test_without_the_place_of_the_action_there_are_no_odds(texts: tuple[str, ...]) -> None:
    assert action_odds(tokens(*texts, at=1, alternatives={"BUY": 1.0, "SELL": 0.1}), Action.BUY) is None


@pytest.mark.parametrize("logprob", [math.nan, 0.5, math.inf])
def test_log_probabilities_that_are_none_are_refused(logprob: float) -> None:
    said = [Token('{"action": "', 0.0, ()), Token("BUY", -1.0, [("SELL", logprob)]), Token('"}', 0.0, ())]
    with pytest.raises(TokensError):
        action_odds(said, Action.BUY)


def test_an_action_of_no_probability_has_no_mass() -> None:
    said = [Token('{"action": "', 0.0, ()), Token("BUY", -math.inf, ()), Token('"}', 0.0, ())]
    odds = action_odds(said, Action.BUY)
    assert odds == (None, 0.0)


words = st.sampled_from([one.name for one in Action])


@given(words, st.lists(st.integers(1, 40), max_size=6), shares)
def test_wherever_an_answer_is_cut_into_tokens_the_deciding_one_is_found(
    word: str, cuts: list[int], odds: tuple[float, float, float]
) -> None:
    content = json.dumps({"action": word, "reason": "the action is BUY or SELL"})
    start = content.index(word)
    ends = sorted({*(cut for cut in cuts if not start < cut < start + len(word)), start + len(word), len(content)})
    pieces = [content[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    begin = 0
    said = []
    for piece in pieces:
        before = content[begin:start] if begin <= start < begin + len(piece) else None
        words_and_odds = zip(["SELL", "HOLD", "BUY"], odds, strict=True)
        alternatives = [] if before is None else [(before + name, math.log(p)) for name, p in words_and_odds]
        chosen = dict(alternatives).get(piece, 0.0)
        said.append(Token(piece, chosen, alternatives))
        begin += len(piece)
    found = action_odds(said, Action[word])
    assert found is not None
    assert found.probabilities == pytest.approx(odds)


@given(shares, st.floats(0.05, 20.0))
def test_calibration_keeps_the_order_and_sums_to_one(odds: tuple[float, float, float], temperature: float) -> None:
    result = calibrated(odds, temperature)
    assert math.fsum(result) == pytest.approx(1.0)
    for one in range(3):
        for other in range(3):
            assert (odds[one] < odds[other]) <= (result[one] <= result[other])


def test_a_word_outside_of_the_list_is_unlikely_and_not_impossible() -> None:
    assert calibrated((0.0, 0.0, 1.0), 1.0)[0] == pytest.approx(PROBABILITY_MIN, rel=1e-5)


@given(shares, st.sampled_from([-1, 0, 1]), st.sampled_from([(0, 1), (-1, 0, 1)]))
def test_probabilities_of_targets_sum_to_one_and_follow_the_words(
    odds: tuple[float, float, float], position: int, targets: tuple[int, ...]
) -> None:
    by_target = target_probabilities(odds, position=position, targets=targets)
    assert math.fsum(by_target.values()) == pytest.approx(1.0)
    assert set(targets) <= set(by_target) <= {*targets, position}
    for action, share in zip((Action.SELL, Action.HOLD, Action.BUY), odds, strict=True):
        assert by_target[target_of(action, position=position, targets=targets)] >= share


@given(shares, st.sampled_from([0, 1]), st.floats(0, 0.2))
def test_the_likeliest_target_wins_by_more_than_a_tie_or_the_position_is_kept(
    odds: tuple[float, float, float], position: int, tie: float
) -> None:
    by_target = target_probabilities(odds, position=position, targets=(0, 1))
    chosen = likeliest(by_target, position=position, tie=tie)
    assert chosen == position or by_target[chosen] > by_target[position] + tie
