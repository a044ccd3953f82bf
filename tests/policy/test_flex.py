"""Attention over a packed row with a block mask: as a GPU computes it, but not compiled, against padded attention."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_attention import COMPLETIONS, GROUPED, PROMPTS, USUAL
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from pacedrl.policy import flex
from pacedrl.policy.activations import gradient_checkpointing
from pacedrl.policy.attention import PackedRow, attention, packed_hidden, shared_prefix
from pacedrl.policy.flex import BLOCK, FlexRow, choose_packing, flex_problem, flex_row, padded_length
from pacedrl.policy.policy import Policy

Build = Callable[[PretrainedConfig], Policy]
Lists = list[list[int]]
LONG = GROUPED | {"max_position_embeddings": 2048}
CPU, GPU = torch.device("cpu"), torch.device("cuda")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute FlexAttention in plain torch operations, which have a backward pass on a CPU, too."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "compiled_attention", lambda: flex_attention)


def drawn(seed: int, prompts: int, group: int, prompt_tokens: int, new_tokens: int) -> tuple[Lists, Lists]:
    """Prompts of up to ``prompt_tokens``, each ``group`` times, and completions of up to ``new_tokens``."""
    rng = np.random.default_rng(seed)

    def ids(longest: int) -> list[int]:
        return list(map(int, rng.integers(3, 259, rng.integers(1, longest + 1))))

    distinct = [ids(prompt_tokens) for _ in range(prompts)]
    return [prompt for prompt in distinct for _ in range(group)], [ids(new_tokens) for _ in range(prompts * group)]


SHAPES: dict[str, tuple[Lists, Lists]] = {
    "prompts that repeat out of order": (PROMPTS, COMPLETIONS),
    "one prompt": ([[5, 6, 7]] * 3, [[9, 8, 2], [10], [11, 2]]),
    "nothing but prompts": ([[5, 6, 7], [8]], [[2], [9]]),
    "several blocks": drawn(0, prompts=3, group=2, prompt_tokens=30, new_tokens=30),
}


def hidden_and_gradients(policy: Policy, row: PackedRow) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the hidden states before each completion token and the gradient of a weighted sum of them."""
    with attention(policy.config, row):
        hidden_KH = packed_hidden(policy.decoder, row)
    policy.model.zero_grad()
    weight_KH = torch.randn(hidden_KH.shape, generator=torch.Generator().manual_seed(1))
    (hidden_KH * weight_KH).sum().backward()  # type: ignore[no-untyped-call]
    named = policy.model.named_parameters()
    return hidden_KH.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_equal_to_padded(policy: Policy, prompts: Lists, completions: Lists, checkpointing: bool = False) -> None:
    ours, our_gradients = [], []
    for pack in (flex_row, shared_prefix):
        with gradient_checkpointing(policy.causal_lm, checkpointing):
            hidden_KH, gradients = hidden_and_gradients(policy, pack(prompts, completions, CPU))
        ours.append(hidden_KH)
        our_gradients.append(gradients)
    torch.testing.assert_close(*ours, rtol=0, atol=2e-5)
    assert our_gradients[0].keys() == our_gradients[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in our_gradients[1].values())
    for name, expected in our_gradients[1].items():
        torch.testing.assert_close(our_gradients[0][name], expected, rtol=1e-3, atol=3e-6 * largest)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_mask_changes_neither_values_nor_gradients(random_policy: Build, shape: str) -> None:
    assert_equal_to_padded(random_policy(USUAL["qwen2"]), *SHAPES[shape])  # two key-value heads for four heads


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ["qwen3", "gpt_neox"])
def test_nor_with_checkpointing_in_other_architectures(random_policy: Build, name: str) -> None:
    assert_equal_to_padded(random_policy(USUAL[name]), PROMPTS, COMPLETIONS, checkpointing=True)


@pytest.mark.usefixtures("uncompiled")
def test_padding_is_finite_and_stays_within_the_positions_that_the_model_has(random_policy: Build) -> None:
    """A row is longer than the context of this model, whose learned positions end there."""
    policy = random_policy(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=259, n_positions=16))
    row = flex_row(PROMPTS, COMPLETIONS, CPU)
    assert len(row.token_N) == 2 * BLOCK > policy.config.n_positions > int(row.position_N.max())
    with attention(policy.config, row), torch.no_grad():
        hidden_NH = policy.decoder(input_ids=row.token_N[None], position_ids=row.position_N[None]).last_hidden_state[0]
    assert hidden_NH.isfinite().all()


@pytest.mark.usefixtures("uncompiled")
def test_one_type_enters_attention_under_autocast() -> None:
    """Rotary embeddings leave queries and keys in float32, next to values in bfloat16."""
    row = flex_row([[5, 6]], [[7, 8]], CPU)
    query, key = torch.randn(2, 1, 2, len(row.token_N), 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = row.attend(query, key, key.bfloat16(), None, 0)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), row.attend(query, key, key, None, 0), rtol=0.05, atol=0.05)


def test_a_prompt_is_followed_by_its_completions_in_which_tokens_and_positions_are_those_of_each_sequence() -> None:
    row = flex_row([[5, 6], [8], [5, 6]], [[10, 11, 12], [20], [30, 31]], CPU)
    assert row.token_N[:7].tolist() == [5, 6, 10, 11, 30, 8, 0]
    assert row.position_N[:7].tolist() == [0, 1, 2, 3, 2, 0, 0]
    assert row.before_K.tolist() == [1, 2, 3, 5, 1, 4]  # of 10, 11, 12; of 20; of 30, 31


@pytest.mark.parametrize("seed", range(4))
def test_blocks_are_those_that_torch_finds_in_the_mask_of_all_tokens(seed: int) -> None:
    row = flex_row(*drawn(seed, prompts=4, group=3, prompt_tokens=500, new_tokens=400), CPU)
    mask, length = row.block_mask, len(row.token_N)
    expected = create_block_mask(mask.mask_mod, None, None, length, length, device="cpu")
    assert torch.equal(mask.to_dense(), expected.to_dense())
    whole, expected_whole = whole_blocks(mask), whole_blocks(expected)
    assert (whole <= expected_whole).all()  # a whole block may be called partial, which costs only time
    assert whole.sum() >= 0.8 * expected_whole.sum() > 0


def whole_blocks(mask: BlockMask) -> Tensor:
    """Return which pairs of blocks the mask says to see each other as a whole: [Q, K]."""
    counts, indices = mask.full_kv_num_blocks, mask.full_kv_indices
    assert counts is not None
    assert indices is not None
    ranks = torch.arange(indices.shape[-1]) < counts[0, 0, :, None]
    return torch.zeros(ranks.shape, dtype=torch.bool).scatter(1, indices[0, 0].long(), ranks)


@pytest.mark.parametrize(
    ("prompt_tokens", "new_tokens", "group", "times_needed", "share_of_padded"),
    [(200, 400, 8, 2.3, 0.75), (200, 1024, 8, 1.75, 0.4), (1000, 200, 8, 1.7, 0.4), (300, 4096, 4, 1.25, 0.35)],
)
def test_how_much_more_than_needed_is_computed(
    prompt_tokens: int, new_tokens: int, group: int, times_needed: float, share_of_padded: float
) -> None:
    """Regression figures: pairs of tokens in computed blocks, to pairs that see each other and to padded pairs."""
    prompts, completions = drawn(0, prompts=4, group=group, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    mask = flex_row(prompts, completions, CPU).block_mask
    computed = int(mask.to_dense().sum()) * BLOCK**2
    distinct = {tuple(prompt) for prompt in prompts}
    needed = sum(len(p) * (len(p) + 1) // 2 for p in distinct)
    for prompt, completion in zip(prompts, completions, strict=True):
        own = len(completion) - 1
        needed += own * len(prompt) + own * (own + 1) // 2
    parts = shared_prefix(prompts, completions, CPU).parts
    padded = sum(rows.query_RT.numel() * rows.key_RS.shape[1] for rows in parts)
    assert computed < times_needed * needed
    assert computed < share_of_padded * padded


def test_lengths_recur_and_little_is_padded() -> None:
    lengths = [padded_length(tokens) for tokens in range(1, 40_000)]
    assert len({length for length in lengths if 16_384 < length <= 32_768}) == 8
    for tokens, length in enumerate(lengths, start=1):
        assert length % BLOCK == 0
        assert tokens <= length < max(1.125 * tokens + 1, tokens + 2 * BLOCK)
    assert padded_length(16_384) == 16_384


def test_training_compiles_what_the_trial_compiled_and_once_more_without_gradients(
    random_policy: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch compiles for one length, then for all. It refuses to compile more than 8 times.

    Activation checkpointing, a GPU's default, compiles nothing else.
    """
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(flex_attention, fullgraph=True, backend=counter)
    monkeypatch.setattr(flex, "compiled_attention", lambda: compiled)
    policy = random_policy(LlamaConfig(**LONG))
    policy.mixed_precision = True
    policy.packing = flex_row
    assert flex_problem(policy.config, CPU) is None
    assert counter.frame_count == 2
    for tokens, checkpointing in ((10, True), (300, True), (500, False), (900, False), (1300, True)):
        with gradient_checkpointing(policy.causal_lm, checkpointing):
            logprobs_BT, _, _ = policy.logprobs([[5] * 20] * 2, [[7] * tokens] * 2)
            logprobs_BT.sum().backward()  # type: ignore[no-untyped-call]
        assert counter.frame_count == 2
    for tokens in (10, 300, 700):
        with torch.no_grad():
            policy.logprobs([[5] * 20] * 2, [[7] * tokens] * 2)
    assert counter.frame_count == 3


HEADS = SimpleNamespace(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
"""What `flex_problem` reads of a configuration."""


@pytest.mark.usefixtures("uncompiled")
def test_flex_attention_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flex_problem(HEADS, CPU) is None
    compressed = SimpleNamespace(hidden_size=64, num_attention_heads=4, qk_head_dim=24, v_head_dim=16)
    assert flex_problem(compressed, CPU) is None
    attend = FlexRow.attend
    monkeypatch.setattr(FlexRow, "attend", lambda *arguments: attend(*arguments) * 1.2)
    assert flex_problem(HEADS, CPU) == "computes something else than causal attention"
    monkeypatch.setattr(FlexRow, "attend", lambda *arguments: attend(*arguments) * torch.nan)
    assert flex_problem(HEADS, CPU) == "computes something else than causal attention"


def test_a_gpu_packs_for_flex_attention_if_it_works_and_says_so_if_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_packing(HEADS, CPU) is shared_prefix
    with caplog.at_level(logging.WARNING):
        with monkeypatch.context() as working:
            working.setattr(flex, "flex_problem", lambda *_: None)
            assert choose_packing(HEADS, GPU) is flex_row
        assert caplog.messages == []
        monkeypatch.setattr(flex, "compiled_attention", broken)
        assert choose_packing(HEADS, GPU) is shared_prefix
    [message] = caplog.messages
    assert message.startswith("pacedrl: updates will be slower, with attention padded, because FlexAttention fails (")
    assert "\n" not in message


def broken() -> Any:
    raise RuntimeError("no compiler here")
