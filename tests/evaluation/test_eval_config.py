"""The configuration that the arguments of `pacedrl eval` describe."""

from __future__ import annotations

from pacedrl.cli import parse
from pacedrl.cli.evaluate import eval_config
from pacedrl.config import Config


def parsed(*arguments: str) -> Config:
    return eval_config(parse(["eval", *arguments]))


def test_overrides_may_stand_before_or_after_the_tasks() -> None:
    before = parsed("tiny", "sampling.max_new_tokens=9", "--tasks", "skills", "gym:chain_sum")
    after = parsed("tiny", "--tasks", "skills", "gym:chain_sum", "sampling.max_new_tokens=9")
    assert before == after
    assert [task.source for task in after.data.eval] == ["skills", "gym:chain_sum"]
    assert {task.split for task in after.data.eval} == {"test"}
    assert after.sampling.max_new_tokens == 9


def test_the_largest_k_sets_the_samples_unless_they_are_given() -> None:
    assert parsed("tiny", "--tasks", "skills", "--k", "1,32").eval.samples == 32
    assert parsed("tiny", "--tasks", "skills", "--k", "1,2").eval.samples == 8
    assert parsed("tiny", "--tasks", "skills", "--k", "1,2", "--samples", "4").eval.samples == 4
    assert parsed("tiny", "--tasks", "skills", "--limit", "5").data.eval[0].limit == 5
