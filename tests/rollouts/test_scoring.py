"""Composed rewards, the overlong penalty, and judging in the background."""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pacedrl.config import TaskConfig, parse_config
from pacedrl.errors import InputError
from pacedrl.rollouts.collect import Scorer, add_overlong_penalty, score_groups
from pacedrl.tasks.datasets import RewardPart, Task, load_task
from pacedrl.tasks.pool import Cancelled, VerifierPool
from pacedrl.types import Completion, Group, Prompt

PARTS = """
    import time

    def tagged(completions):
        return [float(text.startswith("<think>")) for text in completions]

    def broken(completions):
        raise RuntimeError("no opinion")

    def slow(completions):
        time.sleep(float(completions[0]))
        return [1.0]
"""


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "parts.py"
    path.write_text(textwrap.dedent(PARTS))
    return path


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=1, timeout_s=10.0) as made:
        made.start()
        yield made


def group(task: str, *texts: str, answer: str = "18", tokens: int = 1) -> Group:
    completions = [Completion([3] * tokens, [-1.0] * tokens, text, "stop") for text in texts]
    return Group(Prompt("key", task, "q", answer), completions)


def test_parts_are_added_by_weight_and_leave_the_verdict_alone(pool: VerifierPool, judges: Path) -> None:
    tagged = RewardPart("format", f"{judges}:tagged", 0.25)
    against = RewardPart("number", "numeric", -0.5)
    tasks = {"t": Task("t", [], "exact", parts=(tagged, against)), "plain": Task("plain", [], "exact")}
    groups = [group("t", "18", "<think></think>It is 18", "<think></think>no"), group("plain", "18", "19")]
    score_groups(pool, groups, tasks)
    assert [c.reward for c in groups[0].completions] == [1.0, 0.0, 0.0]
    assert [c.parts for c in groups[0].completions] == [
        {"format": 0.0, "number": -0.5},
        {"format": 0.25, "number": -0.5},
        {"format": 0.25, "number": 0.0},
    ]
    assert [c.total for c in groups[0].completions] == [0.5, -0.25, 0.25]
    assert groups[0].observed_accuracy == pytest.approx(1 / 3)
    assert [c.total for c in groups[1].completions] == [1.0, 0.0]


def test_a_failing_reward_part_is_an_error_of_the_completion(pool: VerifierPool, judges: Path) -> None:
    tasks = {"t": Task("t", [], "exact", parts=(RewardPart("opinion", f"{judges}:broken", 1.0),))}
    (judged,) = groups = [group("t", "18")]
    score_groups(pool, groups, tasks)
    (completion,) = judged.completions
    assert (completion.reward, completion.total) == (None, None)
    assert completion.error == "reward part 'opinion': RuntimeError: no opinion"


@pytest.mark.parametrize(("length", "penalty"), [(1, 0.0), (60, 0.0), (80, -0.5), (100, -1.0)])
def test_the_overlong_penalty_grows_through_the_buffer(length: int, penalty: float) -> None:
    groups = [group("t", "x", tokens=length)]
    add_overlong_penalty(groups, limit=100, buffer=40, penalty=2.0)
    assert groups[0].completions[0].parts == {"overlong": pytest.approx(2.0 * penalty)}


def test_groups_are_judged_while_others_are_sampled(judges: Path) -> None:
    tasks = {"t": Task("t", [], f"{judges}:slow")}
    groups = [group("t", "0.1", "0.1"), group("t", "0.1", "0.1")]
    with VerifierPool(workers=1, timeout_s=10.0) as pool:
        pool.start()
        with Scorer(pool, tasks) as scorer:
            scorer.add(groups[0])
            deadline = time.monotonic() + 20
            while any(c.reward is None for c in groups[0].completions):  # it happens without a call of wait
                assert time.monotonic() < deadline
                time.sleep(0.01)
            scorer.add(groups[1])
            start = time.monotonic()
            scorer.wait()
            assert time.monotonic() - start > 0.1
    assert [c.reward for c in groups[1].completions] == [1.0, 1.0]


def test_what_judging_raises_reaches_the_caller(pool: VerifierPool) -> None:
    with Scorer(pool, {}) as scorer:
        scorer.add(group("unknown", "18"))
        with pytest.raises(KeyError, match="unknown"):
            scorer.wait()


def test_an_exception_drops_what_is_being_judged(judges: Path) -> None:
    tasks = {"t": Task("t", [], f"{judges}:slow")}
    with VerifierPool(workers=1, timeout_s=30.0) as pool:
        pool.start()
        start = time.monotonic()
        with pytest.raises(ZeroDivisionError), Scorer(pool, tasks) as scorer:  # noqa: PT012
            scorer.add(group("t", "20"))
            time.sleep(0.3)
            raise ZeroDivisionError
        assert time.monotonic() - start < 5
        fresh = group("t", "0")
        score_groups(pool, [fresh], tasks)  # the pool is as good as new
        assert fresh.completions[0].reward == 1.0


def test_cancelling_an_idle_pool_does_nothing(pool: VerifierPool) -> None:
    pool.cancel()
    fresh = group("t", "18")
    score_groups(pool, [fresh], {"t": Task("t", [], "exact")})
    assert fresh.completions[0].reward == 1.0


def test_a_cancelled_score_raises(judges: Path) -> None:
    outcome: list[BaseException] = []
    with VerifierPool(workers=2, timeout_s=30.0) as pool:
        pool.start()

        def score() -> None:
            try:
                score_groups(pool, [group("t", "20", "20", "20")], {"t": Task("t", [], f"{judges}:slow")})
            except Cancelled as cancelled:
                outcome.append(cancelled)

        thread = threading.Thread(target=score)
        thread.start()
        time.sleep(0.3)
        pool.cancel()
        thread.join(5)
    assert len(outcome) == 1


def test_reward_parts_come_from_the_configuration(judges: Path) -> None:
    part = {"name": "format", "verifier": f"{judges}:tagged", "weight": 0.2}
    task = load_task(TaskConfig.model_validate({"options": {"size": 3}, "extra_rewards": [part]}))
    assert task.parts == (RewardPart("format", f"{judges}:tagged", 0.2),)
    assert task.correctness == RewardPart("correctness", "exact", None)
    for names, said in ((["format", "format"], "'format' is taken"), (["overlong"], "'overlong' is taken")):
        parts = [part | {"name": name} for name in names]
        with pytest.raises(InputError, match=said):
            load_task(TaskConfig.model_validate({"options": {"size": 3}, "extra_rewards": parts}))
    with pytest.raises(InputError, match="takes no options"):
        load_task(TaskConfig.model_validate({"options": {"size": 3}, "verifier_options": {"a": 1}}))
    with pytest.raises(InputError, match="overlong_buffer: 20 is more than"):
        parse_config({"reward": {"overlong_buffer": 20}, "sampling": {"max_new_tokens": 16}})


def test_score_groups_fills_rewards_and_errors():
    def group(task, answer, *texts):
        return Group(Prompt("key", task, "q", answer), [Completion([], [], text, "stop") for text in texts])

    groups = [group("a", "x", "x", "y"), group("b", "18", r"\boxed{18}"), group("b", "", "18")]
    with VerifierPool(workers=2, timeout_s=10) as pool:
        score_groups(pool, groups, {"a": Task("a", [], "exact"), "b": Task("b", [], "math")})
    assert [[c.reward for c in g.completions] for g in groups] == [[1.0, 0.0], [1.0], [None]]
    assert groups[0].completions[0].error is None
    assert "gold answer ''" in groups[2].completions[0].error
    assert [g.observed_accuracy for g in groups] == [0.5, 1.0, None]
