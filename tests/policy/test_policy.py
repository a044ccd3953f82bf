"""The policy on the tiny model: log-probabilities, encoding, embedding, saving, checkpointing of activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
)

from pacedrl.config import ModelConfig
from pacedrl.errors import InputError
from pacedrl.policy.activations import gradient_checkpointing, uses_checkpointing
from pacedrl.policy.determinism import deterministic
from pacedrl.policy.loading import find_head
from pacedrl.policy.policy import Policy

CPU = torch.device("cpu")
IDS = list[list[int]]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def naive(policy: Policy, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    """Compute all log-probabilities [T, V] at the completion's tokens from the model's logits."""
    logits = policy.model(input_ids=torch.tensor([prompt + completion], device=policy.device)).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)


def train_a_little(policy: Policy, prompts: IDS, completions: IDS, rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    policy.logprobs(prompts, completions)[0].sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def gradients(policy: Policy) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_a_ragged_batch_are_those_of_each_sequence_alone(
    tiny: Policy, prompts: IDS, completions: IDS, temperature: float
) -> None:
    logprobs_BT, entropy_BT, mask_BT = tiny.logprobs(prompts, completions, temperature)
    longest = max(map(len, completions))
    assert logprobs_BT.shape == entropy_BT.shape == mask_BT.shape == (len(prompts), longest)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        count = len(completion)
        full_TV = naive(tiny, prompt, completion, temperature).detach()
        assert mask_BT[i].tolist() == [True] * count + [False] * (longest - count)
        assert logprobs_BT[i, count:].tolist() == entropy_BT[i, count:].tolist() == [0.0] * (longest - count)
        expected_T = full_TV[torch.arange(count), torch.tensor(completion)]
        torch.testing.assert_close(logprobs_BT[i, :count].detach(), expected_T, rtol=0, atol=2e-5)
        torch.testing.assert_close(entropy_BT[i, :count], -(full_TV.exp() * full_TV).sum(dim=-1), rtol=1e-4, atol=2e-5)


def test_gradients_of_a_ragged_batch_are_those_of_each_sequence_alone(
    policy: Policy, prompts: IDS, completions: IDS
) -> None:
    weights = [1.0, -2.0, 0.5, 3.0, -1.0]
    logprobs_BT, entropy_BT, _ = policy.logprobs(prompts, completions)
    (logprobs_BT.sum(dim=1) * torch.tensor(weights, device=policy.device)).sum().backward()
    ours = gradients(policy)
    for prompt, completion, weight in zip(prompts, completions, weights, strict=True):
        full_TV = naive(policy, prompt, completion)
        (weight * full_TV[torch.arange(len(completion)), torch.tensor(completion)].sum()).backward()
    theirs = gradients(policy)
    assert not entropy_BT.requires_grad
    assert ours.keys() == theirs.keys() == dict(policy.model.named_parameters()).keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_dropout_stays_off(random_policy: Callable[[PretrainedConfig], Policy], prompts: IDS, completions: IDS) -> None:
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=259, n_positions=64, resid_pdrop=0.5)
    policy = random_policy(config)
    assert torch.equal(policy.logprobs(prompts, completions)[0], policy.logprobs(prompts, completions)[0])


def test_messages_go_through_the_template_with_exactly_one_bos(policy: Policy) -> None:
    policy.tokenizer.chat_template = TEMPLATE
    bos = policy.tokenizer.bos_token_id
    ids = policy.encode([{"role": "system", "content": "Hi"}, {"role": "user", "content": "copy:12="}])
    assert ids.count(bos) == 1
    assert ids[0] == bos
    assert policy.decode(ids) == "<bos>[system]Hi[user]copy:12=[assistant]"
    assert all(type(i) is int for i in ids)


def test_a_template_without_bos_gets_none(policy: Policy) -> None:
    policy.tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    ids = policy.encode([{"role": "user", "content": "1"}])
    assert policy.tokenizer.bos_token_id not in ids
    assert policy.decode(ids) == "[user]1[assistant]"


def test_plain_text_is_encoded_as_the_tokenizer_does_even_with_a_template(policy: Policy) -> None:
    policy.tokenizer.chat_template = TEMPLATE
    assert policy.encode("copy:12=") == policy.tokenizer("copy:12=").input_ids
    assert policy.decode(policy.encode("copy:12=")) == "<bos>copy:12="


def test_tokens_that_the_model_does_not_have(policy: Policy, prompts: IDS, completions: IDS) -> None:
    before = policy.logprobs(prompts, completions)[0]
    policy.tokenizer.add_tokens(["<new>"])
    policy.tokenizer.pad_token = "<new>"  # masked like any padding
    padding = Policy(policy.model, policy.tokenizer, policy.device)
    padding.takes_patterns = padding.mixed_precision = False
    assert torch.allclose(padding.logprobs(prompts, completions)[0], before, atol=1e-5)
    with pytest.raises(
        InputError, match=r"model\.name: the tokenizer writes '<new>' as token 259, but the model has 259"
    ):
        padding.encode("copy:<new>=")


def test_messages_without_a_template_are_an_input_error(tiny: Policy) -> None:
    with pytest.raises(InputError, match="no chat template"):
        tiny.encode([{"role": "user", "content": "1"}])


def test_embeddings_are_means_over_all_tokens_whatever_the_padding(tiny: Policy, prompts: IDS) -> None:
    rows = [*prompts, [1]]
    embeddings_PH = tiny.embed(rows)
    assert embeddings_PH.dtype == torch.float32
    assert embeddings_PH.device == CPU
    assert not embeddings_PH.requires_grad
    for ids, embedding_H in zip(rows, embeddings_PH, strict=True):
        with torch.no_grad():
            ids_1L = torch.tensor([ids], device=tiny.device)
            hidden_LH = tiny.model(input_ids=ids_1L, output_hidden_states=True).hidden_states[-1][0].cpu()
        torch.testing.assert_close(embedding_H, hidden_LH.mean(dim=0), rtol=1e-4, atol=1e-5)
        if len(ids) > 1:
            assert not torch.allclose(embedding_H, hidden_LH[:-1].mean(dim=0), atol=1e-3)
        last_H = tiny.embed(rows, "last")[rows.index(ids)]
        torch.testing.assert_close(last_H, hidden_LH[-1], rtol=1e-4, atol=1e-5)


def test_a_trained_policy_is_saved_for_transformers_and_for_us(
    policy: Policy, prompts: IDS, completions: IDS, tmp_path: Path
) -> None:
    train_a_little(policy, prompts, completions)
    policy.save(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    saved = dict(theirs.named_parameters())
    assert saved.keys() == dict(policy.model.named_parameters()).keys()
    assert all(torch.equal(parameter.cpu(), saved[name]) for name, parameter in policy.model.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path)("copy:12=").input_ids == policy.encode("copy:12=")
    again = Policy.load(ModelConfig(), policy.device, tmp_path)
    again.mixed_precision = False
    assert torch.equal(again.logprobs(prompts, completions)[0], policy.logprobs(prompts, completions)[0])
    assert again.fingerprint() == policy.fingerprint()
    assert not torch.equal(again.head.weight_VH, Policy.load(ModelConfig(), policy.device).head.weight_VH)
    assert again.head.weight_VH is again.model.get_input_embeddings().weight  # still tied


def test_the_fingerprint_tells_one_small_step_and_survives_reloading(
    policy: Policy, tiny: Policy, prompts: IDS, completions: IDS
) -> None:
    before = policy.fingerprint()
    assert before == tiny.fingerprint() == Policy.load(ModelConfig(), CPU).fingerprint()
    train_a_little(policy, prompts, completions, rate=1e-6)
    assert policy.fingerprint() != before


def test_checkpointing_recomputes_and_changes_no_gradient(policy: Policy, prompts: IDS, completions: IDS) -> None:
    calls: list[int] = []
    policy.causal_lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))

    def run(enabled: bool) -> tuple[dict[str, Tensor], int]:
        calls.clear()
        with gradient_checkpointing(policy.causal_lm, enabled), deterministic(policy.device.type == "cuda"):
            policy.logprobs(prompts, completions)[0].sum().backward()
        return gradients(policy), len(calls)

    plain, once = run(False)
    checkpointed, twice = run(True)
    plain_again, once_again = run(False)
    assert (once, twice, once_again) == (1, 2, 1)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)
        assert torch.equal(plain_again[name], gradient)
    assert not any(module.training for module in policy.model.modules())


def test_checkpointing_is_the_default_on_a_gpu(policy: Policy) -> None:
    model, gpu = policy.causal_lm, torch.device("cuda:0")
    assert uses_checkpointing(model, None, gpu)
    assert not uses_checkpointing(model, None, CPU)
    assert not uses_checkpointing(torch.nn.Linear(2, 2), None, gpu)  # a model that cannot
    assert uses_checkpointing(model, True, CPU)
    assert not uses_checkpointing(model, False, gpu)


def test_checkpointing_ends_with_its_context_also_on_an_exception(policy: Policy) -> None:
    with pytest.raises(KeyboardInterrupt), gradient_checkpointing(policy.causal_lm, True):
        raise KeyboardInterrupt
    assert not any(module.training for module in policy.model.modules())
    assert not policy.model.is_gradient_checkpointing


def test_checkpointing_switches_no_dropout_on(
    random_policy: Callable[[PretrainedConfig], Policy], prompts: IDS, completions: IDS
) -> None:
    """OPT's layers call the dropout function themselves with their own ``training`` flag."""
    config = OPTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, vocab_size=259, dropout=0.5
    )
    config.max_position_embeddings, config.word_embed_proj_dim = 64, 16
    policy = random_policy(config)
    expected = policy.logprobs(prompts, completions)[0].detach()
    with gradient_checkpointing(policy.causal_lm, True):
        torch.testing.assert_close(policy.logprobs(prompts, completions)[0].detach(), expected)


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("config", "scale", "softcap"),
    [
        (CohereConfig(**SMALL, logit_scale=0.25), 0.25, None),
        (GraniteConfig(**SMALL, logits_scaling=8.0), 0.125, None),
        (Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0), 1.0, 2.0),
        (PhiConfig(**SMALL), 1.0, None),
    ],
    ids=["cohere", "granite", "gemma2", "phi"],
)
def test_heads_with_scale_cap_or_bias_give_the_models_own_logprobs(
    random_policy: Callable[[PretrainedConfig], Policy],
    prompts: IDS,
    completions: IDS,
    config: PretrainedConfig,
    scale: float,
    softcap: float | None,
) -> None:
    policy = random_policy(config)
    assert policy.head.scale == scale
    assert policy.head.softcap == softcap
    assert (policy.head.bias_V is not None) == isinstance(config, PhiConfig)
    logprobs_BT, _, _ = policy.logprobs(prompts, completions)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        full_TV = naive(policy, prompt, completion)
        assert full_TV.std(dim=-1).min() > 0.05  # far from uniform, so that a wrong scale would show
        expected_T = full_TV[torch.arange(len(completion)), torch.tensor(completion)]
        torch.testing.assert_close(logprobs_BT[i, : len(completion)], expected_T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change", [lambda logits: 1.5 * logits, lambda logits: logits + torch.arange(259, device=logits.device) / 100]
)
def test_logits_computed_in_an_unknown_way_are_refused(policy: Policy, change: Callable[[Tensor], Tensor]) -> None:
    policy.model.lm_head.register_forward_hook(lambda module, inputs, output: change(output))
    with pytest.raises(InputError, match="LlamaForCausalLM computes its logits in a way pacedrl does not know"):
        find_head(policy.model)


def test_an_output_layer_that_is_not_linear_is_refused(policy: Policy) -> None:
    policy.model.set_output_embeddings(torch.nn.Sequential(policy.model.lm_head))
    with pytest.raises(InputError, match=r"output layer is a .*Sequential"):
        find_head(policy.model)


def test_every_stop_token_of_model_and_tokenizer_counts(policy: Policy) -> None:
    assert policy.eos_ids == [2]
    policy.model.generation_config.eos_token_id = [7, 5]
    assert Policy(policy.model, policy.tokenizer, CPU).eos_ids == [2, 5, 7]
    policy.model.generation_config.eos_token_id = None
    policy.tokenizer.eos_token = None
    policy.model.config.eos_token_id = 9
    assert Policy(policy.model, policy.tokenizer, CPU).eos_ids == [9]
