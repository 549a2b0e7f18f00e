from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slotd.dispatch.race import Miss, Standing, Take, Verdict, Wait, race_verdict

L, K, S = Standing.LISTS, Standing.LACKS, Standing.SILENT


def judge(*standings: Standing, now: float = 1.0, hit_at: float | None = None) -> Verdict:
    return race_verdict(standings, now, hit_at=hit_at, grace_s=0.5, deadline=8.0)


def test_a_hit_is_final_once_all_before_it_have_spoken() -> None:
    assert judge(K, L, S, hit_at=1.0) == Take(1)
    assert judge(L, S, S, hit_at=1.0) == Take(0)


def test_a_hit_behind_a_silent_remote_waits_for_its_grace() -> None:
    assert judge(S, L, hit_at=1.0) == Wait(1.5)
    assert judge(S, L, hit_at=1.0, now=1.5) == Take(1)


def test_the_first_hit_starts_the_grace_and_the_first_declared_wins_it() -> None:
    assert judge(S, L, L, hit_at=1.0, now=1.5) == Take(1)


def test_a_miss_is_certain_when_all_have_spoken_and_declared_at_the_deadline() -> None:
    assert judge(K, K) == Miss(late=False)
    assert judge() == Miss(late=False)
    assert judge(K, S) == Wait(8.0)
    assert judge(K, S, now=8.0) == Miss(late=True)


times = st.floats(0, 20, allow_nan=False)


@given(st.lists(st.sampled_from(Standing)), times, times, times, times)
def test_verdicts_are_sound(
    standings: list[Standing], now: float, hit: float, grace: float, deadline: float
) -> None:
    hit_at = min(hit, now) if L in standings else None
    match race_verdict(standings, now, hit_at=hit_at, grace_s=grace, deadline=deadline):
        case Take(index):
            assert index == standings.index(L)  # of those that list it, the first declared
            assert hit_at is not None
            assert S not in standings[:index] or now >= min(hit_at + grace, deadline)
        case Miss(late):
            assert L not in standings
            assert (S in standings) == late
            assert not late or now >= deadline
        case Wait(until):
            assert S in standings
            assert now < until <= deadline  # a wait always ends


@given(st.lists(st.sampled_from(Standing), min_size=1), st.data())
def test_an_answer_never_makes_the_verdict_less_certain(
    standings: list[Standing], data: st.DataObject
) -> None:
    before = race_verdict(standings, 1.0, hit_at=1.0, grace_s=1.0, deadline=9.0)
    at = data.draw(st.integers(0, len(standings) - 1))
    if standings[at] is not S:
        return
    standings[at] = data.draw(st.sampled_from([L, K]))
    after = race_verdict(standings, 1.0, hit_at=1.0, grace_s=1.0, deadline=9.0)
    if not isinstance(before, Wait):
        # Only a remote declared before the winner could take it over, and none such was silent.
        assert after == before
