"""`pacedrl eval`: a model and some tasks, evaluated on their own, outside a training run."""

from __future__ import annotations

from pacedrl.config import Config
from pacedrl.evaluation.evaluate import TaskResult, evaluate
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.policy import Policy
from pacedrl.rollouts.engines import build_sampler, evaluation_settings
from pacedrl.rollouts.tasks import encode_tasks, load_tasks
from pacedrl.tasks.pool import VerifierPool
from pacedrl.view import View


def run_evaluation(config: Config, view: View) -> list[TaskResult]:
    """Load ``model.name`` and evaluate it on ``data.eval``."""
    _, tasks = load_tasks(config.model_copy(update={"data": config.data.model_copy(update={"train": []})}))
    policy = Policy.load(config.model, resolve_device(config.run.device))
    tasks = encode_tasks(policy, tasks, config)
    view.phase("evaluating", sum(len(task.prompts) for task in tasks) * config.eval.samples)
    sampler = build_sampler(config, policy)
    settings, k, seed = evaluation_settings(config), config.eval.k, config.run.seed
    with VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib) as pool:
        return evaluate(sampler, pool, tasks, settings, k, seed, advance=view.advance, strict=True)
