"""PacedTrainer, based on TRL's trainer, trains the tiny model as our trainer does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset, IterableDataset
from recorded import Recorded
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from pacedrl import Config, Trainer
from pacedrl.config import ModelConfig
from pacedrl.errors import InputError
from pacedrl.integrations.trl import PacedTrainer
from pacedrl.method import ClosedFormPartition, DifficultyScheduler
from pacedrl.policy.policy import Layer, Policy
from pacedrl.seeding import derive_seed
from pacedrl.tasks.skills import skill_rows
from pacedrl.training.curriculum import build_scheduler

PROMPTS, GROUP, NEW = 4, 4, 12
RATE = 2e-4
ROWS = [{"prompt": row["prompt"], "answer": row["answer"]} for row in skill_rows(size=48, seed=3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    Policy.load(ModelConfig(), torch.device("cpu")).save(folder)
    return folder


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def right(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    return [float(text.strip() == gold) for text, gold in zip(completions, answer, strict=True)]


def trainer_of(
    model: Path,
    out: Path,
    reward: Any = right,
    rows: Any = None,
    make: Any = DifficultyScheduler,
    layer: Layer = "last",
    **settings: Any,
) -> PacedTrainer:
    arguments = {
        "per_device_train_batch_size": PROMPTS * GROUP // 2,
        "gradient_accumulation_steps": 2,
        "num_generations": GROUP,
        "max_completion_length": NEW,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    } | settings
    data = Dataset.from_list(ROWS) if rows is None else rows
    tokenizer = AutoTokenizer.from_pretrained(model)
    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = GRPOConfig(output_dir=str(out), **arguments)
    return PacedTrainer(causal_lm, reward, config, data, processing_class=tokenizer, scheduler=make, layer=layer)


def ours(folder: Path, model: Path) -> Trainer:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tree = {
        "run": {"dir": str(folder / "ours"), "steps": 2, "device": "cpu"},
        "model": {"name": str(model)},
        "data": {"train": {"source": str(folder / "rows.jsonl"), "verifier": "exact"}},
        "sampling": {"prompts_per_step": PROMPTS, "group_size": GROUP, "max_prompt_tokens": 64, "max_new_tokens": NEW},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
    }
    return Trainer(Config.model_validate(tree))


def as_configured(config: Config) -> Callable[[list[str], torch.Tensor], DifficultyScheduler]:
    """Return the scheduler that our trainer makes from its configuration, including the initial log Z."""

    def make(keys: list[str], embeddings_NH: torch.Tensor) -> DifficultyScheduler:
        torch.manual_seed(derive_seed(config.run.seed, "partition"))
        return build_scheduler(config, keys, embeddings_NH)

    return make


def test_two_steps_are_those_of_our_trainer_on_the_same_completions(tmp_path: Path, model: Path) -> None:
    own = ours(tmp_path, model)
    # Above the rounding of the gradient, of which Adam's own 1e-8 makes whole steps where there is nothing else.
    epsilon = 1e-5
    own.learner.optimizer.param_groups[0]["eps"] = epsilon
    theirs = trainer_of(model, tmp_path / "theirs", make=as_configured(own.config), max_steps=2, adam_epsilon=epsilon)
    steps: list[dict[tuple[int, ...], list[list[int]]]] = []
    replayed: list[int] = []
    observe = theirs._observe

    def recorded() -> None:
        step: dict[tuple[int, ...], list[list[int]]] = {}
        for completion in theirs._fresh:
            step.setdefault(tuple(completion.prompt_ids), []).append(completion.token_ids)
        steps.append(step)
        replayed.append(len(theirs.scheduler.replay()))
        observe()

    theirs._observe = recorded
    theirs.train()
    after = [parameter.detach() for parameter in theirs.model.parameters()]
    assert [len(step) for step in steps] == [PROMPTS, PROMPTS]
    assert replayed[0] == 0 < replayed[1]  # the second step trained on some again
    own.sampler = own.collector.sampler = Recorded(own.policy, steps)
    initial = [parameter.detach().clone() for parameter in own.policy.parameters()]
    own.train()
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(own.policy.parameters(), initial, strict=True))
    assert moved > RATE  # two steps of Adam
    for mine, their in zip(own.policy.parameters(), after, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=0.0)
    mine_N, theirs_N = own.scheduler.accuracy_estimates(), theirs.scheduler.accuracy_estimates()
    assert mine_N == pytest.approx(theirs_N, abs=1e-5)
    assert mine_N.std() > 1e-3  # fitted
    assert [e.token_ids for e in own.scheduler.replay()] == [e.token_ids for e in theirs.scheduler.replay()]
    assert len(own.scheduler.replay()) > 0


def test_prompts_are_chosen_with_what_the_step_before_taught(tmp_path: Path, model: Path) -> None:
    trainer = trainer_of(model, tmp_path)
    chosen: list[list[str]] = []
    select = trainer.scheduler.select

    def recorded(count: int) -> list[str]:
        chosen.append(select(count))
        assert trainer.scheduler.step == len(chosen) - 1  # all steps before have been observed
        return chosen[-1]

    trainer.scheduler.select = recorded  # type: ignore[method-assign, assignment]
    trainer.train()
    assert len(chosen) == 3
    visits = dict(zip(trainer.scheduler.keys, trainer.scheduler.visits_N.tolist(), strict=True))
    for key, count in visits.items():
        assert count == sum(key in keys for keys in chosen)
    logged = [row for row in trainer.state.log_history if "accuracy/mae" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    assert all(0.0 <= row["accuracy/observed_mean"] <= 1.0 for row in logged)
    assert logged[0]["accuracy/observed_mean"] == pytest.approx(logged[0]["reward"], abs=1e-6)
    assert all(row["delta_abs"] > 0.0 for row in logged)
    figures = trainer.evaluate(Dataset.from_list(ROWS[:4]))
    assert 0.0 <= figures["eval_reward"] <= 1.0
    assert trainer.scheduler.step == 3  # an evaluation teaches the scheduler nothing


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"partition": "closed_form", "estimator": "combined", "prior_strength": None, "selection": "thompson"},
        {"selection": "mapp", "estimator": "counts", "group_size": GROUP},
        {"selection": "thompson", "estimator": "bots", "discount": 0.9},
        {"selection": "greso", "estimator": "counts"},
    ],
    ids=["paced", "closed form", "mapp", "bots", "greso"],
)
def test_a_resumed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, model: Path, settings: dict[str, Any]) -> None:
    make = partial(DifficultyScheduler, **settings)
    whole = trainer_of(model, tmp_path / "whole", make=make, max_steps=4)
    whole.train()
    half = trainer_of(model, tmp_path / "half", make=make, max_steps=4, save_strategy="steps", save_steps=2)
    half.train()
    resumed = trainer_of(model, tmp_path / "half", make=make, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half/checkpoint-2"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.scheduler.step == 4
    assert resumed.scheduler.accuracy_estimates().tolist() == whole.scheduler.accuracy_estimates().tolist()
    assert resumed.scheduler.select(PROMPTS) == whole.scheduler.select(PROMPTS)
    (tmp_path / "half/checkpoint-2/scheduler.json").unlink()
    (tmp_path / "half/checkpoint-2/scheduler.safetensors").unlink()
    with pytest.raises(InputError, match=r"checkpoint-2: contains no scheduler.json"):
        trainer_of(model, tmp_path / "half").train(resume_from_checkpoint=str(tmp_path / "half/checkpoint-2"))


def test_unjudged_completions_are_not_observed(tmp_path: Path, model: Path) -> None:
    def picky(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float | None]:
        verdicts = right(completions, answer)
        return [None if i % 4 == 0 else verdict for i, verdict in enumerate(verdicts)]

    trainer = trainer_of(model, tmp_path, reward=picky, max_steps=1)
    seen: list[Any] = []
    observe = trainer.scheduler.observe

    def recorded(fresh: Any) -> Any:
        seen.append(fresh)
        return observe(fresh)

    trainer.scheduler.observe = recorded  # type: ignore[method-assign, assignment]
    trainer.train()
    assert trainer._sequences == 12.0
    (fresh,) = seen
    for i in range(16):
        assert (fresh.token_ids[i] is None) == (i % 4 == 0)
        assert (fresh.reward_B[i] != fresh.reward_B[i]) == (i % 4 == 0)


def test_a_second_reward_shapes_the_policy_and_not_the_estimate(tmp_path: Path, model: Path) -> None:
    def short(completions: Sequence[str], **_: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    def final(reward: Any, name: str) -> PacedTrainer:
        trainer = trainer_of(model, tmp_path / name, reward=reward, max_steps=1)
        trainer.train()
        return trainer

    plain, shaped = final(right, "plain"), final([right, short], "shaped")
    assert [c.reward for c in plain._fresh] == [c.reward for c in shaped._fresh]
    assert plain.scheduler.accuracy_estimates().tolist() == shaped.scheduler.accuracy_estimates().tolist()
    pairs = zip(plain.model.parameters(), shaped.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    with pytest.raises(InputError, match=r"the first, short, must return rewards in \[0, 1\].* but returned -"):
        final([short, right], "wrong")


def test_the_layer_of_the_embeddings_is_chosen(tmp_path: Path, model: Path) -> None:
    make = partial(DifficultyScheduler, partition="closed_form")
    middle, last = (trainer_of(model, tmp_path, make=make, layer=layer).scheduler for layer in get_args(Layer))
    assert isinstance(middle.partition, ClosedFormPartition)
    assert not torch.equal(middle.partition.embeddings_NH, last.partition.embeddings_NH)  # type: ignore[union-attr]


def test_unsupported_settings_are_refused_before_training(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match=r"GRPOConfig.beta: belongs to GRPO's loss .* is 0.04"):
        trainer_of(model, tmp_path, beta=0.04)
    with pytest.raises(InputError, match=r"must be a datasets.Dataset, not IterableDataset"):
        trainer_of(model, tmp_path, rows=IterableDataset.from_generator(lambda: iter(ROWS)))
    with pytest.raises(InputError, match=r"each generation needs 4 different prompts, but it has only 3"):
        trainer_of(model, tmp_path, rows=Dataset.from_list([*ROWS[:3], *ROWS[:3]]))
