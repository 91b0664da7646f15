# SPDX-License-Identifier: Apache-2.0
"""Which nodes live, by a clock that the test turns."""

from __future__ import annotations

from softunicast.agent.liveness import Life, Liveness, Peer


def liveness(count: int = 2, interval_s: float = 0.3, lost: int = 3) -> Liveness:
    found = Liveness(interval_s, lost)
    found.follow([Peer(f"n{at}", "lhr", f"10.0.0.{at}", at) for at in range(1, count + 1)], interval_s, lost)
    return found


def lives(found: Liveness) -> list[Life]:
    return [peer.life for peer in found.peers.values()]


def test_down_after_three_questions_without_an_answer_and_up_with_the_first() -> None:
    found, now_s = liveness(), 100.0
    for turn in range(4):
        asked = found.ask(now_s)
        assert len(asked) == 2 and found.ask(now_s + 0.1) == []
        found.answered("10.0.0.1", asked[0].sequence, True, now_s + 0.002)
        assert lives(found) == [Life.UP, Life.DOWN if turn == 3 else Life.UNKNOWN]
        now_s = found.due_s()
    assert now_s < 101.3
    assert round(found.peers["10.0.0.1"].rtt_ms or 0, 3) == 2.0
    found.answered("10.0.0.2", found.peers["10.0.0.2"].sequence, True, now_s)
    assert lives(found) == [Life.UP, Life.UP]


def test_one_that_is_not_fit_answers_and_is_not_asked_to_carry() -> None:
    found = liveness(1)
    found.answered("10.0.0.1", found.ask(0.0)[0].sequence, False, 0.1)
    assert lives(found) == [Life.UNFIT]


def test_an_agent_that_slept_blames_nobody() -> None:
    found = liveness(1)
    for now_s in (0.0, 1000.0, 2000.0):
        found.answered("10.0.0.1", found.ask(now_s)[0].sequence, True, now_s + 0.1)
    found.ask(9000.0)
    assert lives(found) == [Life.UP]


def test_answers_of_strangers_and_of_long_ago_are_no_life() -> None:
    found = liveness(1)
    for turn in range(20):
        found.ask(float(turn))
    found.answered("10.0.0.9", 20, True, 20.0)
    found.answered("10.0.0.1", 3, True, 20.0)
    found.answered("10.0.0.1", 21, True, 20.0)
    assert lives(found) == [Life.DOWN]
    found.answered("10.0.0.1", 18, True, 20.0)  # late, but it lives
    assert lives(found) == [Life.UP] and found.peers["10.0.0.1"].rtt_ms is None


def test_a_plan_that_changes_keeps_what_is_known_of_the_same_nodes() -> None:
    found = liveness(2)
    found.answered("10.0.0.1", found.ask(0.0)[0].sequence, True, 0.1)
    same, renamed = Peer("n1", "lhr", "10.0.0.1", 1), Peer("other", "lhr", "10.0.0.2", 2)
    found.follow([same, renamed], 0.3, 3)
    assert lives(found) == [Life.UP, Life.UNKNOWN]
    found.follow([renamed], 0.3, 3)
    assert list(found.peers) == ["10.0.0.2"]


def test_large_fleets_are_asked_less_often() -> None:
    assert liveness(2000).interval_s == 2.0


def test_sequences_wrap() -> None:
    found = liveness(1)
    found.peers["10.0.0.1"].sequence = 0xFFFFFFFF
    assert found.ask(0.0)[0].sequence == 0
    found.answered("10.0.0.1", 0xFFFFFFFF, True, 0.1)
    assert lives(found) == [Life.UP]
