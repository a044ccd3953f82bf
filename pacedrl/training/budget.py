"""Decides when a run ends and when it is evaluated."""

import math

from pacedrl.config import Config


def ends_at(config: Config, step: int, rollouts: int) -> bool:
    """Whether the run ends after ``step`` steps and ``rollouts`` generated completions."""
    budget = config.run.max_rollouts
    return step >= config.run.steps or (budget is not None and rollouts >= budget)


def steps_at_most(config: Config, step: int, rollouts: int) -> int:
    """Return an upper bound of the run's last step; a gate that samples more than P·G completions ends it earlier."""
    budget, sampling = config.run.max_rollouts, config.sampling
    if budget is None:
        return config.run.steps
    a_step = sampling.prompts_per_step * sampling.group_size
    return min(config.run.steps, step + max(math.ceil((budget - rollouts) / a_step), 0))


def evaluation_due(config: Config, step: int, rollouts: int, last_rollouts: int) -> bool:
    """Whether to evaluate at this step, if the last evaluation was after ``last_rollouts`` completions."""
    if step == 0 or ends_at(config, step, rollouts):
        return True
    steps, every = config.eval.every, config.eval.every_rollouts
    passed = every > 0 and rollouts // every > last_rollouts // every
    return passed or (steps > 0 and step % steps == 0)
