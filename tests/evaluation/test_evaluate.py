"""Evaluating the tiny model on its own skills."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest
import torch

from pacedrl.config import ModelConfig
from pacedrl.errors import InputError
from pacedrl.evaluation import evaluate as evaluate_module
from pacedrl.evaluation.evaluate import TaskResult, evaluate
from pacedrl.evaluation.metrics import Estimate
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, TransformersSampler
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import VerifierPool
from pacedrl.tasks.skills import skill_rows
from pacedrl.types import Completion, Group, Prompt, prompt_key
from pacedrl.view import View

GREEDY = SamplingSettings(group_size=1, max_new_tokens=10, temperature=0.0)
SAMPLED = SamplingSettings(group_size=4, max_new_tokens=10)


def task_of(skill: str, size: int) -> Task:
    rows = skill_rows("test", skills=[skill], size=size)
    prompts = [Prompt(prompt_key(row["prompt"], row["answer"]), skill, row["prompt"], row["answer"]) for row in rows]
    return Task(skill, prompts, "exact")


COPY, SORT, ADD = task_of("copy", 60), task_of("sort", 20), task_of("add", 20)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(ModelConfig(), torch.device("cpu"))


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=1, timeout_s=10.0) as made:
        yield made


Run = Callable[..., list[TaskResult]]


@pytest.fixture(scope="module")
def run(policy: Policy, pool: VerifierPool) -> Run:
    def evaluated(
        tasks: list[Task],
        settings: SamplingSettings = SAMPLED,
        ks: tuple[int, ...] = (1, 4),
        seed: int = 0,
        **more: object,
    ) -> list[TaskResult]:
        encoded = [
            replace(task, prompts=[replace(prompt, token_ids=policy.encode(prompt.content)) for prompt in task.prompts])
            for task in tasks
        ]
        return evaluate(TransformersSampler(policy), pool, encoded, settings, ks, seed, **more)  # type: ignore[arg-type]

    return evaluated


def test_greedy_copying_is_right_and_adding_is_not(run: Run) -> None:
    copy, add = run([COPY, ADD], GREEDY, (1,))
    assert (copy.task, copy.prompts, add.task, add.prompts) == ("copy", 60, "add", 20)
    assert copy.figures["pass@1"].mean > 0.95
    assert copy.figures["pass@1"] == copy.figures["mean@1"]
    assert copy.figures["distinct"] == Estimate(1, 1, 1)
    assert add.figures["pass@1"].mean < 0.2
    assert copy.truncated == copy.errors == 0


def test_greedy_accuracy_is_that_of_transformers_generation(run: Run, policy: Policy) -> None:
    right = 0
    for prompt in SORT.prompts:
        ids = torch.tensor([policy.encode(prompt.content)])
        out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)
        right += policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == prompt.answer
    [result] = run([SORT], GREEDY, (1,))
    assert result.figures["pass@1"].mean == pytest.approx(right / 20)


def test_the_same_seed_gives_the_same_result_another_seed_another(run: Run) -> None:
    first = run([SORT, ADD], seed=1)
    assert run([SORT, ADD], seed=1) == first
    assert run([ADD, SORT], seed=1) == first[::-1]  # a task's result does not depend on the other tasks
    assert run([SORT, ADD], seed=2) != first
    figures = first[0].figures
    assert figures["pass@4"].mean > figures["pass@1"].mean > 0
    assert figures["pass@1"].mean == pytest.approx(figures["mean@4"].mean)
    assert figures["distinct"].mean > 1 >= figures["distinct_correct"].mean


def test_a_limit_too_low_is_reported_as_truncation(run: Run) -> None:
    settings = SamplingSettings(group_size=1, max_new_tokens=4, temperature=0.0)
    [result] = run([COPY], settings, (1,))
    lengths = [len(prompt.answer) for prompt in COPY.prompts]
    assert result.truncated == pytest.approx(sum(length >= 4 for length in lengths) / 60)
    right = sum(length <= 4 for length in lengths)  # all four digits fit, but not the end token
    assert result.figures["pass@1"].mean == pytest.approx(right / 60, abs=0.05)


def test_progress_and_ticks_are_passed_on(run: Run) -> None:
    done: list[int] = []
    ticks: list[int] = []
    phases: list[tuple[str, int]] = []
    view = View(quiet=True)
    view.advance = done.append  # type: ignore[method-assign]
    view.phase = lambda name, total: phases.append((name, total))  # type: ignore[method-assign]
    run([SORT, ADD], tick=lambda: ticks.append(1), view=view)
    assert phases == [("evaluating", 160)]
    assert done == [4] * 40
    assert 2 * 3 <= len(ticks) <= 2 * 10


def test_results_read_as_flat_numbers_and_as_json(run: Run) -> None:
    [result] = run([SORT])
    flat = result.flat()
    assert flat["sort/pass@4"] == result.figures["pass@4"].mean
    assert flat["sort/pass@4_low"] == result.figures["pass@4"].low
    assert flat["sort/pass@4_high"] == result.figures["pass@4"].high
    assert {"sort/truncated", "sort/verifier_errors", "sort/distinct", "sort/mean@4"} <= flat.keys()
    assert json.loads(json.dumps(asdict(result)))["figures"]["pass@1"]["mean"] == result.figures["pass@1"].mean


def judged_as(monkeypatch: pytest.MonkeyPatch, verdict: Callable[[int], float | None]) -> None:
    """Verdicts by the number of the completion within its group, in place of the pool's."""

    def score(pool: VerifierPool, groups: list[Group], tasks: dict[str, Task]) -> None:
        for group in groups:
            for i, completion in enumerate(group.completions):
                completion.reward = verdict(i)
                completion.error = "broke" if completion.reward is None else None

    monkeypatch.setattr(evaluate_module, "score_groups", score)


def test_errors_are_counted_and_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_as(monkeypatch, lambda i: {0: 1.0, 1: 0.5, 2: 0.0}.get(i))
    [result] = run([SORT], ks=(1, 3))
    assert result.errors == 20
    means = {name: estimate.mean for name, estimate in result.figures.items()}
    assert means["pass@1"] == pytest.approx(1 / 3)
    assert means["pass@3"] == 1.0
    assert means["mean@3"] == pytest.approx(0.5)
    assert result.flat()["sort/verifier_errors"] == 20.0


def test_a_verifier_that_fails_too_often_is_an_input_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_as(monkeypatch, lambda i: 1.0 if i == 0 else None)
    with pytest.raises(InputError, match=r"task sort: .*failed on 60 of 80 completions.*pass@4; .*broke") as caught:
        run([SORT])
    assert "\n" not in str(caught.value)


def test_a_verifier_that_breaks_for_real_is_an_input_error(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("verifiers") / "broken.py"
    file.write_text("def reward(prompts, completions, **columns):\n    raise RuntimeError('out of order')\n")
    with pytest.raises(InputError, match="out of order"):
        run([replace(SORT, prompts=SORT.prompts[:2], verifier=f"{file}:reward")])


def test_answers_are_counted_by_what_they_state(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["so 4", "hence 4", "5", "4 or 4"]

    def fixed(policy: Policy, prompts: list[Prompt], *_: object) -> list[Group]:
        return [Group(p, [Completion([5, 2], [0.0, 0.0], text, "stop") for text in texts]) for p in prompts]

    monkeypatch.setattr(evaluate_module, "sample_groups", fixed)
    judged_as(monkeypatch, lambda i: float(i != 2))
    [as_numbers] = run([replace(SORT, verifier="math")])
    [as_text] = run([SORT])
    assert (as_numbers.figures["distinct"].mean, as_text.figures["distinct"].mean) == (2, 4)
    assert (as_numbers.figures["distinct_correct"].mean, as_text.figures["distinct_correct"].mean) == (1, 3)
