"""Sampling with vLLM in the same process, which receives the policy's weights in memory."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from pacedrl.config import SamplingConfig
from pacedrl.errors import InputError
from pacedrl.policy.ends import Ends
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SampledGroups, Sampler, SamplingSettings, Tick, TokenLists
from pacedrl.policy.vllm import INSTALL
from pacedrl.policy.vllm.worker import pack_head
from pacedrl.text import first_line
from pacedrl.types import Completion


class VllmSampler(Sampler):
    """Samples with vLLM's continuous batching, paged cache and prefix caching, from the weights of the last `sync`.

    Log-probabilities are those of the tempered distribution after top-p truncation, from which vLLM samples; those of
    `pacedrl.policy.sampler` are before truncation. Each group has its own seed, but the samples may depend on the batch
    through rounding in vLLM's kernels.

    Raises InputError without the ``vllm`` extra, or for a model that vLLM does not support.
    """

    def __init__(self, policy: Policy, config: SamplingConfig) -> None:
        # vLLM reads these when it is imported. In one process, weights can be passed as tensors.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            self.vllm: Any = __import__("vllm")
        except ImportError as error:
            raise InputError(
                f"sampling.engine=vllm needs the package vllm ({error}): {INSTALL}, or set sampling.engine=transformers"
            ) from None
        self.policy = policy
        self.sleeps = policy.device.type == "cuda" and not config.ahead
        """Whether vLLM frees the GPU for training between `rest` and the next `sync`. It cannot on a CPU."""
        self.asleep = False
        several = dist.is_initialized() and dist.get_world_size() > 1  # vLLM initialises a group of one
        with tempfile.TemporaryDirectory() as folder:
            policy.causal_lm.config.save_pretrained(folder)
            reads_text = bool(policy.ends(config.stop).strings)
            if reads_text:
                policy.tokenizer.save_pretrained(folder)
            try:
                self.llm = self.vllm.LLM(
                    model=folder,
                    skip_tokenizer_init=not reads_text,
                    load_format="dummy",
                    dtype="bfloat16" if policy.device.type == "cuda" else "float32",
                    max_model_len=config.max_prompt_tokens + config.max_new_tokens,
                    max_num_seqs=config.batch_size,
                    gpu_memory_utilization=config.gpu_memory,
                    enable_prefix_caching=True,
                    logprobs_mode="processed_logprobs",
                    generation_config="vllm",
                    enable_sleep_mode=self.sleeps,
                    # Each process of the run has its own GPU and engine; vLLM then uses the existing process group.
                    distributed_executor_backend="external_launcher" if several else None,
                )
            except (ValueError, RuntimeError, NotImplementedError) as error:
                reason = first_line(error)
                raise InputError(f"sampling.engine: vLLM cannot run this model: {reason}", docs="serving") from None
        self.sync(policy)

    @torch.no_grad()
    def sync(self, policy: Policy, tick: Tick = lambda: None) -> None:
        """Wake the engine up, load the weights into it and drop the prefixes cached with the old ones."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        # vLLM's own way of reloading, which redoes its preparation of the weights for its kernels.
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": policy.weights()})
        if policy.device.type == "cpu" and policy.causal_lm.config.get_text_config().tie_word_embeddings:
            self.llm.apply_model(pack_head)
        if self.asleep:  # only now, so that the cache need not fit beside weights in transit
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        self.llm.reset_prefix_cache()

    def rest(self) -> None:
        """Free the GPU's memory, including the weights, which the next `sync` loads again."""
        if self.sleeps and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def sample(
        self, prompt_ids: TokenLists, settings: SamplingSettings, seeds: Sequence[int], tick: Tick = lambda: None
    ) -> SampledGroups:
        engine = self.llm.llm_engine
        ends = self.policy.ends(settings.stop)
        kind = self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        requests = []
        for i, (ids, seed) in enumerate(zip(prompt_ids, seeds, strict=True)):
            parameters = self.vllm.SamplingParams(**sampling_parameters(self.policy, settings, seed), output_kind=kind)
            requests.append(engine.add_request(f"{i}-{seed}", {"prompt_token_ids": list(ids)}, parameters))
        try:
            while engine.has_unfinished_requests():
                tick()
                for output in engine.step():
                    if output.finished:
                        group = [_completion(one, ends) for one in output.outputs]
                        yield int(output.request_id.partition("-")[0]), group * (settings.group_size // len(group))
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request(requests, internal=True)


def _completion(output: Any, ends: Ends) -> Completion:
    ids = [int(i) for i in output.token_ids]
    return ends.completion(ids, [float(row[i].logprob) for row, i in zip(output.logprobs, ids, strict=True)])


def sampling_parameters(policy: Policy, settings: SamplingSettings, seed: int) -> dict[str, Any]:
    """Return a group's arguments for vLLM's ``SamplingParams``.

    Stop strings make vLLM stop sampling; `Ends` then cuts the text as for all samplers.
    """
    ends = policy.ends(settings.stop)
    return {
        "n": settings.group_size if settings.temperature > 0 else 1,  # greedy completions are all the same
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_new_tokens,
        "seed": seed % 2**31,
        "logprobs": 0,  # only of the sampled token
        "stop_token_ids": ends.token_ids,
        "ignore_eos": True,  # the end tokens are among the stop tokens
        "stop": list(ends.strings),
        "detokenize": bool(ends.strings),
        "skip_special_tokens": False,
    }
