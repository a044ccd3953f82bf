"""From prompts to judged groups of completions, for training and evaluation alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pacedrl.config import Config
from pacedrl.policy.sampler import Sampler, SamplingSettings
from pacedrl.seeding import derive_seed
from pacedrl.types import Group, Prompt


def training_settings(config: Config) -> SamplingSettings:
    """How a training step samples."""
    sampling = config.sampling
    return SamplingSettings(
        sampling.group_size,
        sampling.max_new_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.batch_size,
        tuple(sampling.stop),
    )


def evaluation_settings(config: Config) -> SamplingSettings:
    """How an evaluation samples."""
    own, sampling = config.eval, config.sampling
    return SamplingSettings(
        own.samples, sampling.max_new_tokens, own.temperature, own.top_p, sampling.batch_size, tuple(sampling.stop)
    )


def sample_groups(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    prompt_ids: Mapping[str, list[int]],
    settings: SamplingSettings,
    seed: Sequence[int | str],
    tick: Callable[[], None] = lambda: None,
    advance: Callable[[int], None] = lambda completions: None,
    finished: Callable[[Group], None] = lambda group: None,
) -> list[Group]:
    """G completions of each prompt, in the order of ``prompts``, not judged yet.

    ``prompt_ids`` maps prompt keys to token ids. A prompt's seed is derived from ``seed`` and its key. ``advance`` is
    called with the number of completions as each group finishes, ``finished`` with the group.
    """
    ids = [prompt_ids[prompt.key] for prompt in prompts]
    seeds = [derive_seed(*seed, prompt.key) for prompt in prompts]
    done: dict[int, Group] = {}
    for i, completions in sampler.sample(ids, settings, seeds, tick):
        done[i] = Group(prompts[i], ids[i], completions)
        finished(done[i])
        advance(len(completions))
    return [done[i] for i in range(len(prompts))]
