"""Builds the sampler of a run and the settings of its sampling."""

from dataclasses import replace

from pacedrl.config import Config
from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import Sampler, SamplingSettings, TransformersSampler


def build_sampler(config: Config, policy: Policy, sharded: bool = False, ranks: Ranks | None = None) -> Sampler:
    """Build the sampler of ``sampling.engine``. Raises InputError if the engine is not installed or not reachable.

    If the policy is about to be ``sharded``, the sampler keeps a whole copy of it. All ``ranks`` call this together.
    """
    require_an_end(config, policy)
    if config.sampling.engine == "vllm_server":
        from pacedrl.policy.vllm.server import VllmServerSampler

        return VllmServerSampler(policy, config.sampling, ranks)
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
