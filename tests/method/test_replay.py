"""The replay buffer: which completions enter, in which order they leave, and the saved state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pacedrl.method import ReplayBuffer, ReplayEntry


def entry(priority: float, step: int = 0, key: str = "k") -> ReplayEntry:
    return ReplayEntry(key, (1, 2), (-0.5, -0.25), 1.0, step, priority)


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(0, 12), st.integers(1, 12))
def test_the_largest_priorities_enter(priorities: list[float], capacity: int, admit: int) -> None:
    buffer = ReplayBuffer(capacity, admit)
    admitted = buffer.add(entry(p) for p in priorities)
    assert admitted == len(buffer) == min(len(priorities), admit, capacity)
    assert sorted(e.priority for e in buffer.entries) == sorted(priorities)[len(priorities) - admitted :]


def test_the_oldest_leave_when_it_is_full_whatever_their_priority() -> None:
    buffer = ReplayBuffer(capacity=4, admit=2)
    for step in range(3):
        buffer.add([entry(1.0 - 0.1 * step, step), entry(0.9 - 0.1 * step, step), entry(0.0, step)])
    assert [e.step for e in buffer.draw(step=3)] == [1, 1, 2, 2]


def test_the_papers_sizes_replay_a_completion_at_most_twice() -> None:
    buffer = ReplayBuffer()
    replays: dict[str, int] = {}
    for step in range(6):
        for drawn in buffer.draw(step):
            replays[drawn.key] = replays.get(drawn.key, 0) + 1
        buffer.add(entry(i / 100, step, key=f"{step}-{i}") for i in range(100))
    assert len(buffer) == 128
    assert set(replays.values()) == {1, 2}
    assert replays["0-99"] == 2
    assert "0-35" not in replays  # 64 of 100 entered: 36 to 99
    assert "0-36" in replays


def test_entries_past_their_age_are_dropped_even_if_nothing_follows() -> None:
    buffer = ReplayBuffer(capacity=4, admit=2, max_age=3)
    buffer.add([entry(0.5, step=0)])
    buffer.add([entry(0.5, step=1)])
    assert [e.step for e in buffer.draw(step=3)] == [0, 1]
    assert [e.step for e in buffer.draw(step=4)] == [1]
    assert buffer.draw(step=9) == []
    assert len(buffer) == 0


def test_ties_keep_the_order_given() -> None:
    buffer = ReplayBuffer(capacity=4, admit=2)
    buffer.add([entry(0.5, key="a"), entry(0.5, key="b"), entry(0.5, key="c")])
    assert {e.key for e in buffer.entries} == {"a", "b"}


def test_capacity_zero_turns_it_off() -> None:
    buffer = ReplayBuffer(capacity=0)
    assert buffer.add([entry(1.0)]) == 0
    assert buffer.draw(0) == []


def test_state_restores_every_entry() -> None:
    buffer = ReplayBuffer(4, 4)
    buffer.add([entry(0.1), entry(0.7, step=2)])
    other = ReplayBuffer(4, 4)
    other.add([entry(0.9)])
    other.load_state_dict(buffer.state_dict())
    assert list(other.entries) == list(buffer.entries)


def test_ages_and_priorities_are_told_as_quantiles() -> None:
    buffer = ReplayBuffer(capacity=8, admit=8)
    for step, priority in enumerate([0.5, 0.1, 0.4, 0.2, 0.3]):
        buffer.add([entry(priority, step)])
    metrics = buffer.metrics(step=5)
    names = ("min", "q25", "median", "mean", "q75", "max")
    assert [metrics[f"replay/age_{name}"] for name in names] == [1, 2, 3, 3, 4, 5]
    assert [round(metrics[f"replay/priority_{name}"], 9) for name in names] == [0.1, 0.2, 0.3, 0.3, 0.4, 0.5]
    assert metrics["replay/size"] == 5
    empty = ReplayBuffer().metrics(step=5)
    assert empty.keys() == metrics.keys()
    assert all(value != value for name, value in empty.items() if name != "replay/size")
