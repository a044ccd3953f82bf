"""Building a run: tasks, prompts within the length limit, the scheduler, and the settings that reach them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pacedrl.config import parse_config
from pacedrl.errors import InputError
from pacedrl.method import ClosedFormPartition, MlpPartition
from pacedrl.policy.policy import Policy
from pacedrl.rollouts.tasks import encode_tasks, load_tasks, shorten, unique_prompts
from pacedrl.seeding import derive_seed
from pacedrl.tasks.datasets import Task
from pacedrl.training import trackers
from pacedrl.training.curriculum import build_scheduler
from pacedrl.training.trackers import require_trackers, tracking
from pacedrl.types import Prompt


def prompt(text: str, task: str = "t") -> Prompt:
    return Prompt(f"key of {text}", task, text, "1")


def limits(**sampling: Any) -> Any:
    return parse_config({"sampling": sampling})


def test_prompts_are_encoded_once_each_by_key(policy: Policy) -> None:
    tasks = [Task("one", [prompt("copy:1="), prompt("copy:22=")], "exact"), Task("two", [prompt("copy:1=")], "exact")]
    kept = encode_tasks(policy, tasks, limits(max_prompt_tokens=9, max_new_tokens=16))
    one, two = (replace(p, token_ids=policy.encode(p.content)) for p in tasks[0].prompts)
    assert kept == [replace(tasks[0], prompts=[one, two]), replace(tasks[1], prompts=[one])]


def test_a_prompt_at_the_limit_passes_and_one_token_more_is_refused_or_dropped(policy: Policy) -> None:
    task = Task("t", [prompt("copy:1="), prompt("copy:22="), prompt("copy:333=")], "exact")  # 8, 9 and 10 tokens
    with pytest.raises(InputError, match=r"task t: 1 of 3 prompts are longer .* = 9, the first with 10 tokens"):
        encode_tasks(policy, [task], limits(max_prompt_tokens=9, max_new_tokens=16))
    config = parse_config({"sampling": {"max_prompt_tokens": 9, "max_new_tokens": 16}, "data": {"overlong": "drop"}})
    [kept] = encode_tasks(policy, [task], config)
    assert [p.key for p in kept.prompts] == [p.key for p in task.prompts[:2]]
    config = parse_config({"sampling": {"max_prompt_tokens": 7, "max_new_tokens": 16}, "data": {"overlong": "drop"}})
    with pytest.raises(InputError, match="task t: every prompt is longer"):
        encode_tasks(policy, [task], config)


def test_prompt_and_completion_must_fit_the_models_context(policy: Policy) -> None:
    assert policy.context_length == 512
    task = Task("t", [prompt("copy:1="), prompt("copy:22=")], "exact")
    encode_tasks(policy, [task], limits(max_new_tokens=512 - 9))
    with pytest.raises(InputError, match=r"the longest prompt \(9 tokens\) .* \(504\) exceed .* 512 tokens"):
        encode_tasks(policy, [task], limits(max_new_tokens=512 - 8))


def test_two_tasks_of_one_name_are_refused_but_train_and_eval_may_share_it() -> None:
    skills = {"source": "skills", "options": {"size": 7}}
    train, held_out = load_tasks(parse_config({"data": {"train": skills, "eval": {**skills, "split": "test"}}}))
    assert [task.name for task in train] == [task.name for task in held_out] == ["skills"]
    with pytest.raises(InputError, match=r"data\.eval: 2 tasks are called 'skills'"):
        load_tasks(parse_config({"data": {"train": skills, "eval": [skills, skills]}}))


def test_a_prompt_of_several_tasks_belongs_to_the_first() -> None:
    tasks = [Task("a", [prompt("x", "a")], "exact"), Task("b", [prompt("y", "b"), prompt("x", "b")], "exact")]
    assert [(p.content, p.task) for p in unique_prompts(tasks)] == [("x", "a"), ("y", "b")]


def test_every_setting_of_the_scheduler_reaches_it() -> None:
    config = parse_config(
        {
            "run": {"seed": 11},
            "objective": {"beta": 0.2},
            "partition": {
                "prior_accuracy": 0.3,
                "hidden_size": 5,
                "dropout": 0.4,
                "learning_rate": 0.01,
                "weight_decay": 0.2,
                "fit_steps": 3,
            },
            "replay": {"capacity": 7, "admit": 2, "max_age": 3},
            "selection": {
                "target_accuracy": 0.7,
                "explore_fraction": 0.25,
                "cooldown_steps": 6,
                "retain_fraction": 0.125,
                "candidates": 9,
            },
        }
    )
    scheduler = build_scheduler(config, ["a", "b"], torch.eye(2, 4))
    partition = scheduler.partition
    assert isinstance(partition, MlpPartition)
    assert partition.beta == 0.2
    assert scheduler.accuracy_estimate(["b", "a"]) == pytest.approx([0.3, 0.3])
    assert scheduler.log_z(["a"]).tolist() == pytest.approx([1.5])
    bias = partition.optimizer.param_groups[-1]
    assert (bias["lr"], bias["weight_decay"], partition.fit_steps) == (0.01, 0.2, 3)
    layers = list(partition.network.layers)
    assert [layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear)] == [5, 5, 1]
    assert {layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)} == {0.4}
    buffer = scheduler.replay_buffer
    assert (buffer.entries.maxlen, buffer.admit, buffer.max_age) == (7, 2, 3)
    assert (scheduler.target_accuracy, scheduler.explore_fraction, scheduler.cooldown_steps) == (0.7, 0.25, 6)
    assert (scheduler.retain_fraction, scheduler.candidates) == (0.125, 9)
    assert scheduler.seed == 11


def test_every_setting_of_a_closed_form_reaches_it() -> None:
    settings = {"name": "closed_form", "prior_accuracy": 0.3, "discount": 0.7, "components": 3, "features": 16}
    one, two = (
        build_scheduler(
            parse_config({"objective": {"beta": 0.2}, "partition": {**settings, "length_scale": scale}}),
            ["a", "b", "c"],
            torch.eye(3, 4),
        ).partition
        for scale in (1.0, 2.0)
    )
    assert isinstance(one, ClosedFormPartition)
    assert isinstance(two, ClosedFormPartition)
    assert (one.beta, one.prior_accuracy, one.discount, one.features.size) == (0.2, 0.3, 0.7, 17)
    assert one.features.components_HK.shape == (4, 3)
    torch.testing.assert_close(one.features.frequencies_KF, 2 * two.features.frequencies_KF)


@pytest.mark.parametrize(
    ("content", "shown"),
    [("a\n b", "'a b'"), ("x" * 61, repr("x" * 59 + "…")), ("x" * 60, repr("x" * 60))],
)
def test_prompts_are_shown_on_one_line(content: str, shown: str) -> None:
    assert shorten(prompt(content)) == shown
    assert shorten(Prompt("k", "t", [{"role": "user", "content": content}], None)) == shown


def test_seeds_depend_on_every_part_and_on_where_it_ends() -> None:
    parts: list[tuple[int | str, ...]] = [(0, "sample", 1, "a"), (1, "sample", 1, "a"), (0, "eval", 1, "a"), (0, "x")]
    parts += [(0, "sample", 11), (0, "sample", 1, 1), (0, "sample", 1, "b")]
    seeds = [derive_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert (
        derive_seed(0, "sample", 1, "a") == 4130909373632628550
    )  # of a run begun with another version, on another machine


def test_tracked_numbers_are_the_finite_ones(tmp_path: Path) -> None:
    config = parse_config(
        {"run": {"dir": str(tmp_path), "device": "cpu"}, "tracking": {"trackers": ["tensorboard"], "project": "mine"}}
    )
    pytest.importorskip("tensorboard")
    with tracking(config, step=2) as log:
        log({"reward/mean": 0.25, "loss": float("nan"), "norm": float("inf")}, 3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [folder] = {path.parent for path in (tmp_path / "mine").glob("events*")}
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(3, 0.25)]


def test_a_tracker_that_is_not_installed_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    config = parse_config({"tracking": {"trackers": ["wandb"]}})
    with pytest.raises(InputError, match=r"'wandb' is not installed: pip install \"pacedrl\[trackers\]\""):
        require_trackers(config)
    monkeypatch.setitem(sys.modules, "accelerate", None)  # without a tracker it is not imported
    with tracking(parse_config({}), step=0) as log:
        log({"reward/mean": 1.0}, 1)
