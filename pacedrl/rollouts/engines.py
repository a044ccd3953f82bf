"""Builds the sampler of a run and the settings of its sampling."""

import time
from dataclasses import replace

from pacedrl.config import Config
from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SampledGroups, Sampler, SamplingSettings, TokenLists, TransformersSampler
from pacedrl.types import Completion

Timed = tuple[list[list[Completion]], float]
"""The groups of prompts in their order, and the seconds that sampling them took."""


def build_sampler(config: Config, policy: Policy, sharded: bool = False, ranks: Ranks | None = None) -> Sampler:
    """Build the sampler of ``sampling.engine``. Raises InputError if the engine is not installed or not reachable.

    If the policy is about to be ``sharded``, the sampler keeps a whole copy of it. All ``ranks`` call this together.
    """
    require_an_end(config, policy)
    if config.sampling.engine == "vllm_server":
        from pacedrl.policy.vllm.server import VllmServerSampler

        return VllmServerSampler(policy, config.sampling, ranks)
    return _own_sampler(config, policy, sharded)


def sample_once(config: Config, policy: Policy, prompt_ids: TokenLists, settings: SamplingSettings) -> Timed:
    """Sample a group for each prompt with the configured engine, and measure how long that takes once it is started.

    Servers sample from the weights that they have: a run that uses them is not disturbed, and their speed is the same.

    Raises InputError if the engine is not installed or cannot run the model, and Lost if a server does not answer.
    """
    seeds = range(len(prompt_ids))
    if config.sampling.engine == "vllm_server":
        from pacedrl.policy.vllm.client import Server
        from pacedrl.policy.vllm.server import sample_version

        versions = [Server(url).version() for url in config.sampling.servers]  # all must answer
        return _timed(sample_version(policy, config.sampling, versions[0], prompt_ids, settings, seeds))
    sampler = _own_sampler(config, policy, sharded=False)
    timed = _timed(sampler.sample(prompt_ids, settings, seeds))
    sampler.rest()
    return timed


def _timed(groups: SampledGroups) -> Timed:
    start = time.perf_counter()
    found = dict(groups)
    return [found[i] for i in range(len(found))], time.perf_counter() - start


def _own_sampler(config: Config, policy: Policy, sharded: bool) -> Sampler:
    """Build a sampler that works in this process."""
    if config.sampling.engine == "vllm":
        from pacedrl.policy.vllm.sampler import VllmSampler

        return VllmSampler(policy, config.sampling)
    return TransformersSampler(policy, own_copy=config.sampling.ahead or sharded)


def require_an_end(config: Config, policy: Policy) -> None:
    """Raise InputError if nothing but the length limit would end a completion."""
    if not policy.ends(config.sampling.stop):
        raise InputError(
            "model.name: neither the model, its tokenizer nor its chat template names a token that ends a completion; "
            "set sampling.stop to a token or string that ends one"
        )


def training_settings(config: Config) -> SamplingSettings:
    """Return the sampling settings of a training step."""
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
    """Sampling settings of an evaluation."""
    own = config.eval
    return replace(training_settings(config), group_size=own.samples, temperature=own.temperature, top_p=own.top_p)
