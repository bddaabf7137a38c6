"""Which score decides, by which threshold: every combination by hand."""

import math

import pytest

from speechbrain_ext.inference.decisions import Decider, log_odds, probability
from speechbrain_ext.inference.thresholds import Thresholds
from speechbrain_ext.utils.errors import InputError

ALL = ["cosine", "as_norm", "llr"]


def measured(*kinds):
    scores = [1, 2, 3, 4, 5, 4.5, 6], [0, 0, 0, 0, 0, 1, 1]
    return {kind: Thresholds.from_scores(*scores) for kind in kinds}


@pytest.mark.parametrize(
    ("kinds", "thresholds", "rate", "expected"),
    [
        (["cosine"], [], None, "cosine"),
        (["cosine", "as_norm"], [], None, "cosine"),
        (["cosine", "as_norm"], ["cosine"], None, "cosine"),
        (["cosine", "as_norm"], ["cosine", "as_norm"], None, "as_norm"),
        (ALL, [], None, "llr"),
        (ALL, ["cosine"], None, "llr"),
        (ALL, ["cosine"], 0.2, "cosine"),
        (ALL, ["cosine", "as_norm"], 0.2, "as_norm"),
        (ALL, ALL, 0.2, "llr"),
        (["cosine"], ALL, 0.2, "cosine"),  # measured once, but the files are gone
    ],
)
def test_the_best_score_with_a_threshold_decides(kinds, thresholds, rate, expected):
    decider = Decider(kinds, measured(*thresholds), "x")
    assert decider.kind(false_accept_rate=rate) == expected


def test_the_score_asked_for_decides():
    decider = Decider(ALL, measured("llr"), "x")
    assert [decider.kind(kind, 0.3) for kind in ALL] == ALL
    with pytest.raises(InputError, match="of no particular score"):
        decider.kind(threshold=0.3)
    assert Decider(["cosine"], {}, "x").kind(threshold=0.3) == "cosine"


def test_where_the_threshold_comes_from():
    decider, found = Decider(ALL, measured("cosine"), "x"), measured("cosine")["cosine"]
    assert decider.point("cosine") == found.rates_at(found.eer_threshold)
    assert decider.point("cosine", threshold=4.5) == pytest.approx((4.5, 0.2, 0.0))
    assert decider.point("cosine", false_accept_rate=0.4).threshold == 4.0
    assert decider.point("as_norm", threshold=4) == (4.0, None, None)
    assert decider.point("llr") == (0.0, None, None)
    assert decider.point("llr", prior=0.1).threshold == pytest.approx(math.log(9))
    with pytest.raises(InputError, match=r"'llr' needs it in .*, which has cosine;"):
        decider.point("llr", false_accept_rate=0.1)
    with pytest.raises(InputError, match="no threshold of 'as_norm'"):
        decider.point("as_norm")


def test_probabilities_by_hand():
    assert probability(0.0, 0.5) == 0.5
    assert probability(math.log(3), 0.5) == pytest.approx(0.75)
    assert probability(math.log(3), 0.25) == pytest.approx(0.5)
    assert probability(1e4, 0.5) == 1.0
    assert probability(-1e4, 0.5) == 0.0
    assert log_odds(0.2) == pytest.approx(math.log(0.25))
