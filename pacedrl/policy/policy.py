"""The language model with its tokenizer: encodes and embeds prompts, computes log-probabilities, saves weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from dataclasses import replace
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from pacedrl.config import ModelConfig
from pacedrl.distributed.sharding import Sharded, whole
from pacedrl.errors import InputError
from pacedrl.policy.attention import attention, exclude_cudnn, packed_hidden, shared_prefix, takes_patterns
from pacedrl.policy.chat_template import token_ids
from pacedrl.policy.decoding import Decoding, choose_decoding
from pacedrl.policy.ends import Ends, as_ids, end_token_ids, split_stops, turn_end
from pacedrl.policy.flex import Pack, choose_packing
from pacedrl.policy.loading import find_decoder, find_head, load_model_and_tokenizer, model_fingerprint
from pacedrl.policy.logprobs import Head, OutputLayer, token_logprobs
from pacedrl.policy.shared_prompts import can_share_prompts
from pacedrl.types import Message

Pooling = Literal["mean", "last"]
"""How a prompt's hidden states are reduced to its embedding: their mean over the tokens, or that of the last token."""
Layer = Literal["middle", "last"]
"""The layer whose hidden states an embedding is made of: layer ⌈L/2⌉ of L, or the last."""


class Policy:
    """A causal language model with its tokenizer on one device.

    Weights are float32, except an adapter's base on a GPU (`halve_frozen_weights`). On a GPU the forward pass runs
    under bfloat16 autocast, on a CPU in float32, because CPUs without bfloat16 instructions are hundreds of times
    slower with it. Logits are always float32, and computed the same way in sampling and training
    (`pacedrl.policy.logprobs.OutputLayer`). Dropout is always off: trajectory balance
    compares the log-probabilities of one policy at two times, not of two random subnetworks.

    If the model's attention allows it (``takes_patterns``), training uses `pacedrl.policy.attention`: a prompt passes
    through the model once for all its completions. If the model's cache also allows it (``shares_prompts``),
    completions are decoded from one copy of their prompt (`pacedrl.policy.shared_prompts`).
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self._hold(model)
        self._place(device)
        self.tokenizer = tokenizer
        self._head = find_head(self.causal_lm)
        # So that sampling, `generate` and a plain forward pass have the logits of training also under autocast.
        self.causal_lm.get_output_embeddings().__class__ = OutputLayer
        self.takes_patterns = takes_patterns(self.causal_lm)
        # transformers 5.24 renamed this argument.
        takes_cache = "cache" in signature(self.causal_lm.forward).parameters
        self.cache_argument = "cache" if takes_cache else "past_key_values"
        self.shares_prompts = self.takes_patterns and self._can_share_prompts()
        self.turn_end = turn_end(tokenizer)
        own_ids, self.end_strings = split_stops(tokenizer, [self.turn_end] if self.turn_end else [])
        self.eos_ids = sorted({*end_token_ids(self.causal_lm, tokenizer), *own_ids})
        self.vocabulary = self.causal_lm.get_input_embeddings().weight.shape[0]
        # Some tokenizers pad with a token that the model does not have. Padding is masked, so any token will do.
        known = [i for i in (tokenizer.pad_token_id, *self.eos_ids) if i is not None and i < self.vocabulary]
        self.pad_id = [*known, 0][0]
        self.sharded: Sharded | None = None
        """The model with its weights sharded over all processes; None if each process holds them all."""
        self._initial_fingerprint: str | None = None

    @classmethod
    def load(cls, config: ModelConfig, device: torch.device, folder: Path | None = None) -> Policy:
        """Load the configured model, or its checkpoint in ``folder``. Raises InputError if it cannot be used."""
        halves = config.lora is not None and device.type == "cuda"
        # The checks need float32 weights. A GPU that has room for the halved weights may have none for these.
        policy = cls(*load_model_and_tokenizer(config, folder), torch.device("cpu") if halves else device)
        _ = policy.decoding  # refuses a model that cannot be sampled from before anything else is done
        if halves:
            policy.halve_frozen_weights()
            policy._place(device)
            policy.shares_prompts = policy.shares_prompts and policy._can_share_prompts_in_half()
        return policy

    def _hold(self, model: Any) -> None:
        self.model = model
        # peft wraps the model and injects its layers in place: the model inside is the adapted causal LM.
        self.causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder = find_decoder(self.causal_lm)

    def _place(self, device: torch.device) -> None:
        """Move the model to the device, and compute in the precision that suits it."""
        if device.type == "cuda":
            exclude_cudnn()
        self.model.to(device)
        self.device = device
        self.mixed_precision = device.type == "cuda"

    def halve_frozen_weights(self) -> None:
        """Keep the frozen weights of linear layers in bfloat16, to which autocast would round them each time.

        The other weights, those of normalisation and embedding, stay float32, so under autocast nothing changes but
        memory. Without autocast such a model cannot be run.
        """
        self._initial_fingerprint = self.fingerprint()  # of the weights before they are rounded
        embedding = self.causal_lm.get_input_embeddings().weight
        for module in self.model.modules():
            if isinstance(module, torch.nn.Linear):
                for parameter in (module.weight, module.bias):
                    if parameter is not None and parameter is not embedding and not parameter.requires_grad:
                        parameter.data = parameter.data.bfloat16()

    def frozen_copy(self) -> Policy:
        """Return a policy with a copy of the weights that is not trained."""
        frozen = copy(self)  # what was found out about the model holds for its copy
        frozen._hold(deepcopy(self.model).requires_grad_(False))
        return frozen

    @cached_property
    def decoding(self) -> Decoding:
        """The way completions are decoded. Raises InputError for a model that cannot be sampled from and trained."""
        return choose_decoding(self)

    @cached_property
    def packing(self) -> Pack:
        """The way prompts and completions are packed into a row for training, chosen when it is first used."""
        return choose_packing(self.config, self.device)

    def shard(self) -> None:
        """Shard the weights over all processes, which from now on compute, load and save together."""
        self.causal_lm.float()  # torch before 2.9 shards the weights of a layer only if they are of one type
        self.sharded = Sharded(self.causal_lm)

    @property
    def head(self) -> Head:
        """The output layer, which turns last hidden states into logits, with its current weights."""
        linear = self.causal_lm.get_output_embeddings()
        dtype = torch.bfloat16 if self.mixed_precision else torch.float32
        return replace(self._head, weight_VH=linear.weight, bias_V=linear.bias, dtype=dtype)

    def adapter_off(self) -> AbstractContextManager[Any]:
        """Disable the LoRA adapter, if there is one, while the context lasts."""
        adapted = self.model is not self.causal_lm
        return self.model.disable_adapter() if adapted else nullcontext()

    @property
    def pads_attention(self) -> bool:
        """Whether attention in training pads completions to the longest, as `shared_prefix` does."""
        return not self.takes_patterns or self.packing is shared_prefix

    @property
    def context_length(self) -> int | None:
        """The number of tokens that the model's positions allow; None if its config does not say."""
        limit = getattr(self.causal_lm.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit is not None else None

    @property
    def config(self) -> Any:
        """The configuration of the text model, which its layers share."""
        return self.decoder.config

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the trainable parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights with their names in the model's own checkpoints, an adapter's added to those it adapts.

        They are made one at a time, so that they need no second copy of the model. Sharded weights are gathered, so all
        processes must iterate together.
        """
        adapted: dict[int, Any] = {
            id(module.base_layer.weight): module
            for module in self.causal_lm.modules()
            if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
        }
        for name, weight in self.causal_lm.named_parameters():
            if ".lora_" in name:
                continue
            total = weight.detach()
            if (module := adapted.get(id(weight))) is not None:
                total = total + module.get_delta_weight(module.active_adapters[0]).detach()
            yield name.replace(".base_layer", ""), whole(total)

    def fingerprint(self) -> str:
        """Return the `model_fingerprint` of the weights in float32."""
        return self._initial_fingerprint or model_fingerprint(self.causal_lm)

    def encode(self, content: str | list[Message], options: Mapping[str, Any] | None = None) -> list[int]:
        """Return a prompt's token ids, as `pacedrl.policy.chat_template.token_ids` does."""
        return token_ids(self.tokenizer, content, options, self.vocabulary)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the tokens, with special tokens and unchanged spaces."""
        return str(self.tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))

    def ends(self, stop: Sequence[str] = ()) -> Ends:
        """Return where completions end: at the model's end tokens, its chat template's end of a turn, and ``stop``."""
        token_ids, strings = split_stops(self.tokenizer, stop)
        return Ends({*self.eos_ids, *token_ids}, [*self.end_strings, *strings], self.decode)

    def padded(self, sequences: Sequence[Sequence[int]], side: str = "right") -> tuple[Tensor, Tensor]:
        """Pad sequences to one length. Returns their ids and which of these are not padding (bool), both [B, L]."""
        pad = partial(pad_sequence, batch_first=True, padding_side=side)
        # Padded on the host, so that a GPU is given two tensors instead of two for each sequence.
        rows = [torch.tensor(ids, dtype=torch.long) for ids in sequences]
        ids_BL = pad(rows, padding_value=self.pad_id)
        mask_BL = pad([torch.ones_like(ids, dtype=torch.bool) for ids in rows])
        return ids_BL.to(self.device, non_blocking=True), mask_BL.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed_precision)

    def next_logits(self, ids_BL: Tensor, mask_BL: Tensor | None, position_BL: Tensor, cache: Cache) -> Tensor:
        """Compute the logits [B, V] of the token after ``ids_BL`` and the cached ones, and extend the cache."""
        options = {self.cache_argument: cache, "use_cache": True, "logits_to_keep": 1}
        with self.autocast():
            output = self.causal_lm(input_ids=ids_BL, attention_mask=mask_BL, position_ids=position_BL, **options)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def logprobs(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the log-probabilities of each completion's tokens given its prompt, with gradient.

        Returns ``logprobs_BT``, ``entropy_BT`` (nats, no gradient) and ``mask_BT`` (bool), right-padded with zeros.
        ``temperature`` divides the logits as in sampling, so that the policy trained is the one that was sampled.
        """
        lengths = [len(ids) for ids in completion_ids]
        compute = partial(self._token_logprobs, prompt_ids, completion_ids, temperature)
        logprob_K, entropy_K = compute() if self.sharded is None else self.sharded.run(compute)
        logprobs_BT = pad_sequence(list(torch.split(logprob_K, lengths)), batch_first=True)
        entropy_BT = pad_sequence(list(torch.split(entropy_K, lengths)), batch_first=True)
        mask_BT = torch.arange(max(lengths), device=self.device) < self._tensor(lengths)[:, None]
        return logprobs_BT, entropy_BT, mask_BT

    def dummy_pass(self) -> None:
        """Run a forward pass, and a backward pass with zero gradient, while other processes have more to compute."""
        logprobs_BT, _, _ = self.logprobs([[self.pad_id]], [[self.pad_id]])
        if logprobs_BT.requires_grad:
            (0.0 * logprobs_BT.sum()).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def embed(self, prompt_ids: Sequence[Sequence[int]], pooling: Pooling = "mean", layer: Layer = "last") -> Tensor:
        """Compute each prompt's embedding from the hidden states of a layer: float32 [P, H] on the CPU.

        ``middle`` takes the output of layer ⌈L/2⌉ of L, counted from 1, as transformers' ``hidden_states`` lists it;
        the output of a single layer is the last hidden state. Models with S parallel residual streams between their
        layers, such as DeepSeek-V4 and Gemma 3n, give all of them: [P, S·H]. All layers are computed and kept during
        the call, because this is the only way that is right for every architecture.

        Raises InputError if the model does not return the hidden states of its layers.
        """
        if layer == "middle":
            output, mask_PL = self._decode(prompt_ids, output_hidden_states=True)
            hidden_PLH = self._middle(output)
        else:
            hidden_PLH, mask_PL = self._hidden(prompt_ids)
        if pooling == "last":
            rows = torch.arange(len(hidden_PLH), device=hidden_PLH.device)
            return hidden_PLH[rows, mask_PL.sum(dim=1) - 1].float().cpu()
        total_PH = (hidden_PLH.float() * mask_PL[..., None]).sum(dim=1)
        return (total_PH / mask_PL.sum(dim=1, keepdim=True)).cpu()

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Save the weights (or the adapter) as safetensors and the tokenizer, to be loaded by transformers (or peft).

        The generation settings name all end tokens, so that other programs stop where this package does. ``weights``
        are the `trained_weights` of a sharded policy.
        """
        settings = self.causal_lm.generation_config
        if set(self.eos_ids) - set(as_ids(settings.eos_token_id)):
            settings.eos_token_id = self.eos_ids
        self.model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    def trained_weights(self, keep: bool) -> dict[str, Tensor] | None:
        """Gather the weights that `save` needs of a sharded policy, for the processes that ``keep`` them; else None."""
        if self.sharded is None:
            return None
        adapted = self.model is not self.causal_lm
        named = self.model.state_dict(keep_vars=True)
        gathered: dict[int, Tensor] = {}  # by identity, so that tied weights stay tied
        for value in named.values():
            if id(value) not in gathered and (value.requires_grad or not adapted):
                tensor = whole(value.detach())
                gathered[id(value)] = tensor.cpu() if keep else tensor.new_empty(0)
        return {name: gathered[id(value)] for name, value in named.items() if id(value) in gathered}

    def _token_logprobs(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probability and entropy of each completion token, with all completions concatenated: [K]."""
        hidden_KH = self._hidden_before(prompt_ids, completion_ids)
        target_K = self._tensor([token for ids in completion_ids for token in ids])
        return token_logprobs(hidden_KH, self.head, target_K, temperature)

    def _hidden_before(self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> Tensor:
        """Compute the last hidden states that predict each completion token, completions concatenated: [K, H]."""
        if self.takes_patterns:
            # In float32, which a GPU uses for checks of a few tokens alone, compiling would take longer than it saves.
            pack = self.packing if self.mixed_precision else shared_prefix
            packed = pack(prompt_ids, completion_ids, self.device)
            with self.autocast(), attention(self.config, packed):
                return packed_hidden(self.decoder, packed)
        pairs = list(zip(prompt_ids, completion_ids, strict=True))
        hidden_BLH, _ = self._hidden([[*prompt, *completion] for prompt, completion in pairs])
        spans = [slice(len(prompt) - 1, len(prompt) + len(completion) - 1) for prompt, completion in pairs]
        return torch.cat([hidden_LH[span] for hidden_LH, span in zip(hidden_BLH, spans, strict=True)])

    def _hidden(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        output, mask_BL = self._decode(sequences)
        return output.last_hidden_state, mask_BL

    def _decode(self, sequences: Sequence[Sequence[int]], **options: bool) -> tuple[Any, Tensor]:
        """Run the decoder on padded sequences. Returns its output and the mask of `padded`."""
        ids_BL, mask_BL = self.padded(sequences)
        with self.autocast():
            output = self.decoder(input_ids=ids_BL, attention_mask=mask_BL.long(), use_cache=False, **options)
        return output, mask_BL

    def _can_share_prompts(self) -> bool:
        """Whether completions can be decoded from one copy of their prompt, in every precision of the policy."""
        exact = can_share_prompts(self.causal_lm, self.cache_argument, nullcontext(), tolerance=1e-3)
        return exact and (not self.mixed_precision or self._can_share_prompts_in_half())

    def _can_share_prompts_in_half(self) -> bool:
        # That the attention is right is known by now. This tries torch's product of bfloat16 matrices in float32, and
        # the tolerance is a few of bfloat16's roundings, of 0.004 each.
        return can_share_prompts(self.causal_lm, self.cache_argument, self.autocast(), tolerance=0.05)

    def _middle(self, output: Any) -> Tensor:
        """Return the hidden states [P, L, H] in the middle of a decoder's output."""
        states = getattr(output, "hidden_states", None)  # the input of the first layer and the output of each
        if not states:
            raise InputError(f"model.name: {type(self.causal_lm).__name__} returns no hidden states of its layers")
        middle: Tensor = states[len(states) // 2]
        if hasattr(self.config, "altup_num_inputs"):
            middle = middle.movedim(0, 2)  # Gemma 3n puts its streams first, the others after the tokens
        return middle.flatten(start_dim=2)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
