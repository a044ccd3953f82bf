"""`pacedrl eval`: a model and some tasks, evaluated on their own, outside a training run."""

from __future__ import annotations

import argparse
from typing import Any

from pacedrl.config import Config, config_tree, parse_config
from pacedrl.errors import InputError
from pacedrl.evaluation.evaluate import TaskResult, evaluate
from pacedrl.policy.loading import adapter_base, resolve_device
from pacedrl.policy.policy import Policy
from pacedrl.rollouts.engines import build_sampler, evaluation_settings
from pacedrl.rollouts.tasks import encode_tasks, load_tasks
from pacedrl.tasks.pool import VerifierPool
from pacedrl.view import View

DEFAULT_SAMPLES = 8


def eval_config(options: argparse.Namespace) -> Config:
    """The configuration that the command line describes. Raises InputError for anything wrong with it."""
    # What follows --tasks on the command line is a task unless it reads as an override.
    named = [text for text in options.tasks or [] if "=" not in text]
    overrides = [*options.overrides, *(text for text in options.tasks or [] if "=" in text)]
    tree: dict[str, Any] = config_tree(options.config, overrides)
    parse_config(tree, str(options.config or "eval"))
    model = tree.setdefault("model", {})
    said = any(text.startswith("model.gguf_file=") for text in options.overrides)
    if options.model != model.get("name") and not said and adapter_base(options.model) is None:
        model.pop("gguf_file", None)  # of the model the configuration names, not of this one
    model["name"] = options.model
    model["lora"] = None  # an adapter that nothing has trained changes nothing
    data = tree.setdefault("data", {})
    if named:
        data["eval"] = [{"source": name, "split": options.split} for name in named]
    if not data.get("eval"):
        raise InputError("no tasks: name some with --tasks, or give a --config with data.eval")
    tasks = data["eval"] if isinstance(data["eval"], list) else [data["eval"]]
    data["eval"] = [{**task, "limit": options.limit} if options.limit is not None else task for task in tasks]
    settings = tree.setdefault("eval", {})
    if options.k is not None:
        settings["k"] = whole_numbers(options.k, "--k")
        settings["samples"] = max([DEFAULT_SAMPLES, *settings["k"]])
    if options.samples is not None:
        settings["samples"] = options.samples
    return parse_config(tree, "eval")


def whole_numbers(text: str, option: str) -> list[int]:
    """The numbers of ``1,8,32``; InputError names the option."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option}: expected whole numbers separated by commas, such as 1,8,32, got '{text}'"
        ) from None


def run_evaluation(config: Config, view: View) -> list[TaskResult]:
    """Load ``model.name`` and evaluate it on ``data.eval``."""
    _, tasks = load_tasks(config.model_copy(update={"data": config.data.model_copy(update={"train": []})}))
    policy = Policy.load(config.model, resolve_device(config.run.device))
    tasks, prompt_ids = encode_tasks(policy, tasks, config)
    view.phase("evaluating", sum(len(task.prompts) for task in tasks) * config.eval.samples)
    sampler = build_sampler(config, policy)
    settings, k, seed = evaluation_settings(config), config.eval.k, config.run.seed
    with VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib) as pool:
        return evaluate(sampler, pool, tasks, prompt_ids, settings, k, seed, advance=view.advance, strict=True)
