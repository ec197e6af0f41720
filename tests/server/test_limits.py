from hypothesis import given
from hypothesis import strategies as st

from fedpact.server.limits import Failures, Nonces, Rate

KEYS = st.sampled_from([b"a", b"b"])
STEPS = st.lists(st.tuples(st.floats(0, 30), KEYS, st.integers(0, 5)), max_size=60)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(STEPS)
def test_a_nonce_is_new_once_in_its_time_and_then_forgotten(steps):
    clock, taken = Clock(), []
    nonces = Nonces(60.0, clock)
    for rest, key, number in steps:
        clock.now += rest
        taken = [(at, *what) for at, *what in taken if at + 60.0 > clock.now]
        seen = [key, number] in [what for _, *what in taken]
        assert nonces.is_new(key, bytes([number])) != seen
        if not seen:
            taken.append((clock.now, key, number))
        assert len(nonces) == len(taken)


@given(STEPS, st.floats(0.1, 2.0), st.integers(1, 10))
def test_nobody_has_more_than_its_burst_and_its_share_of_time(steps, per_second, burst):
    clock = Clock()
    rate = Rate(per_second, burst, clock)
    served = {b"a": [], b"b": []}
    for rest, key, _ in steps:
        clock.now += rest
        if rate.take(key):
            served[key].append(clock.now)
    for moments in served.values():
        for first, start in enumerate(moments):
            for last, end in enumerate(moments[first:], first):
                assert last - first + 1 <= burst + (end - start) * per_second + 1e-6


def test_who_waits_may_call_again():
    clock = Clock()
    rate = Rate(1.0, 2.0, clock)
    assert [rate.take(b"a") for _ in range(3)] == [True, True, False]
    clock.now += 1.0
    assert [rate.take(b"a"), rate.take(b"a"), rate.take(b"b")] == [True, False, True]


def test_failures_are_counted_for_a_minute_and_by_host():
    clock = Clock()
    failures = Failures(2, clock)
    for _ in range(2):
        assert failures.allows("a")
        failures.count("a")
    assert (failures.allows("a"), failures.allows("b")) == (False, True)
    clock.now += 60.5
    assert failures.allows("a")
