"""Sampling from the tiny model: the samples, their distribution, and how they are decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from pacedrl.policy import cache
from pacedrl.policy.cache import ColumnCache
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample
from pacedrl.policy.shared_prompts import PromptCache
from pacedrl.types import Completion

IDS = list[list[int]]


def drawn(
    policy: Policy, prompts: IDS, settings: SamplingSettings, seeds: Sequence[int] | None = None
) -> list[list[Completion]]:
    """Return the groups in the order of the prompts."""
    found = dict(sample(policy, prompts, settings, list(range(len(prompts))) if seeds is None else seeds))
    assert sorted(found) == list(range(len(prompts)))
    return [found[i] for i in range(len(prompts))]


def next_token(policy: Policy, sequences: IDS, temperature: float) -> Tensor:
    """Return the probabilities of the next token after sequences of one length: [B, V]."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor(sequences, device=policy.device)).logits[:, -1]
    return torch.softmax(logits / temperature, dim=-1).cpu()


def assert_drawn_from(counts: Counter[Any], expected: dict[Any, float]) -> None:
    """Test chi-square at about four standard deviations; outcomes expected less than five times are pooled."""
    total = sum(counts.values())
    common = {outcome: p * total for outcome, p in expected.items() if p * total >= 5}
    observed = [counts[outcome] for outcome in common] + [total - sum(counts[outcome] for outcome in common)]
    wanted = [*common.values(), total - sum(common.values())]
    if wanted[-1] < 5:  # the rest is too small for its own bin
        assert observed.pop() <= 5 + 5 * wanted.pop()
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, wanted, strict=True))
    freedom = len(wanted) - 1
    assert freedom >= 5
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_greedy_is_what_transformers_generates(tiny: Policy, prompts: IDS) -> None:
    groups = drawn(tiny, prompts, SamplingSettings(group_size=2, max_new_tokens=12, temperature=0.0))
    for prompt, group in zip(prompts, groups, strict=True):
        generated = tiny.model.generate(
            torch.tensor([prompt], device=tiny.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=tiny.device),
            do_sample=False,
            max_new_tokens=12,
        )
        assert [c.token_ids for c in group] == [generated[0, len(prompt) :].tolist()] * 2


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0, 0.0])
def test_behaviour_logprobs_are_those_of_the_policy(tiny: Policy, prompts: IDS, temperature: float) -> None:
    settings = SamplingSettings(group_size=8, max_new_tokens=10, temperature=temperature, batch_size=24)
    groups = drawn(tiny, prompts, settings)
    completions = [completion for group in groups for completion in group]
    repeated = [prompt for prompt in prompts for _ in range(8)]
    assert len({len(completion.token_ids) for completion in completions}) > 1
    with torch.no_grad():
        logprobs_BT, _, mask_BT = tiny.logprobs(repeated, [c.token_ids for c in completions], temperature or 1.0)
    for completion, row, mask in zip(completions, logprobs_BT, mask_BT, strict=True):
        assert completion.logprobs == pytest.approx(row[mask].tolist(), abs=1e-4)
    assert min(min(completion.logprobs) for completion in completions) < -0.5


def test_first_tokens_follow_the_tempered_softmax(tiny: Policy) -> None:
    prompt = tiny.encode("add:12+34=")
    settings = SamplingSettings(group_size=4000, max_new_tokens=1, temperature=1.5)
    [group] = drawn(tiny, [prompt], settings)
    probability = next_token(tiny, [prompt], 1.5)[0]
    assert_drawn_from(Counter(c.token_ids[0] for c in group), dict(enumerate(probability.tolist())))


def test_pairs_of_tokens_follow_the_chain_rule(tiny: Policy) -> None:
    """Each token has its own random number, and the second token is drawn given the first."""
    prompt = tiny.encode("add:12+34=")
    [group] = drawn(tiny, [prompt], SamplingSettings(group_size=6000, max_new_tokens=2))
    first = next_token(tiny, [prompt], 1.0)[0]
    digits = [i for i in range(len(first)) if i not in tiny.eos_ids]
    second = next_token(tiny, [[*prompt, i] for i in digits], 1.0)
    expected = {(i, j): float(first[i] * second[row, j]) for row, i in enumerate(digits) for j in range(len(first))} | {
        (eos,): float(first[eos]) for eos in tiny.eos_ids
    }
    assert_drawn_from(Counter(tuple(c.token_ids) for c in group), expected)


def test_top_p_keeps_the_smallest_set_that_reaches_it_renormalised(tiny: Policy) -> None:
    prompt = tiny.encode("add:12+34=")
    [group] = drawn(tiny, [prompt], SamplingSettings(4000, max_new_tokens=1, temperature=1.3, top_p=0.75))
    probability = next_token(tiny, [prompt], 1.3)[0]
    nucleus: dict[int, float] = {}
    for token in probability.argsort(descending=True).tolist():
        if sum(nucleus.values()) >= 0.75:
            break
        nucleus[token] = float(probability[token])
    counts = Counter(c.token_ids[0] for c in group)
    assert set(counts) == set(nucleus)
    assert_drawn_from(counts, {token: p / sum(nucleus.values()) for token, p in nucleus.items()})
    for completion in group[:50]:  # log-probabilities before truncation, as documented
        assert completion.logprobs[0] == pytest.approx(float(probability[completion.token_ids[0]].log()), abs=1e-4)


def test_what_is_drawn_depends_on_the_seed_alone(tiny: Policy) -> None:
    prompts = [tiny.encode(text) for text in ["add:12+34=", "sort:9081726=", "add:1+2=", "rotate:12345=", "add:9+9="]]
    seeds = [11, 12, 13, 14, 15]
    settings = SamplingSettings(group_size=4, max_new_tokens=9, batch_size=256)
    together = drawn(tiny, prompts, settings, seeds)
    few = drawn(tiny, prompts, SamplingSettings(group_size=4, max_new_tokens=9, batch_size=8), seeds)
    order = [3, 0, 4, 2, 1]
    shuffled = drawn(tiny, [prompts[i] for i in order], settings, [seeds[i] for i in order])
    for i, group in enumerate(together):
        for other in (few[i], shuffled[order.index(i)]):
            assert [c.token_ids for c in other] == [c.token_ids for c in group]
            for mine, theirs in zip(other, group, strict=True):
                assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    again = drawn(tiny, prompts, settings, [21, *seeds[1:]])
    assert [c.token_ids for c in again[0]] != [c.token_ids for c in together[0]]
    assert [[c.token_ids for c in group] for group in again[1:]] == [
        [c.token_ids for c in group] for group in together[1:]
    ]
    assert len({tuple(c.token_ids) for c in together[0]}) > 1  # completions of one group differ


def test_completions_end_with_the_stop_token_or_at_the_limit(tiny: Policy, prompts: IDS) -> None:
    completions = [c for g in drawn(tiny, prompts, SamplingSettings(16, max_new_tokens=4)) for c in g]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    assert {len(c.token_ids) for c in completions if c.finish_reason == "stop"} >= {3, 4}
    for completion in completions:
        ids = completion.token_ids
        assert len(completion.logprobs) == len(ids)
        assert ids.count(2) == (1 if completion.finish_reason == "stop" else 0)
        if completion.finish_reason == "stop":
            assert ids[-1] == 2
            assert len(ids) <= 4
        else:
            assert len(ids) == 4
        body = [i for i in ids if i != 2]
        assert completion.text == tiny.tokenizer.decode(body)
        assert completion.reward is completion.error is None


def test_any_of_several_stop_tokens_ends_a_completion_and_is_not_text(policy: Policy) -> None:
    one = policy.encode("1")[1]
    policy.eos_ids = sorted([2, one])
    prompt = policy.encode("copy:2312=")
    [group] = drawn(policy, [prompt], SamplingSettings(2, max_new_tokens=8, temperature=0.0))
    assert [(c.text, c.token_ids[-1], c.finish_reason) for c in group] == [("23", one, "stop")] * 2


class _Calls:
    """Record the shape of the input ids in each call of the model."""

    def __init__(self, policy: Policy) -> None:
        self.shapes: list[tuple[int, ...]] = []
        policy.model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))


def test_prompts_are_read_once_and_finished_rows_leave(policy: Policy) -> None:
    texts = ["copy:12345678=", "copy:12=", "copy:123=", "copy:12=", "copy:321="]
    prompts = [policy.encode(text) for text in texts]
    calls = _Calls(policy)
    groups = drawn(policy, prompts, SamplingSettings(4, max_new_tokens=20, temperature=0.0, batch_size=16))
    assert [g[0].text for g in groups] == ["12345678", "12", "123", "12", "321"]
    # The four longest prompts (16 / 4) start together. A completion of n digits and the end token takes n more steps.
    # When the first short one has left, the waiting prompt joins; its completion ends two steps later.
    assert calls.shapes == [
        (4, len(prompts[0])),
        *[(16, 1)] * 2,
        (1, len(prompts[1])),
        (16, 1),
        (8, 1),
        *[(4, 1)] * 4,
    ]


def test_a_group_larger_than_the_batch_is_still_drawn_whole(policy: Policy) -> None:
    calls = _Calls(policy)
    groups = drawn(policy, [[1, 5], [1, 6]], SamplingSettings(8, max_new_tokens=2, batch_size=3))
    assert [len(group) for group in groups] == [8, 8]
    assert calls.shapes == [(1, 2), (8, 1), (1, 2), (8, 1)]


def test_tick_is_called_once_a_token_and_what_it_raises_ends_sampling(policy: Policy) -> None:
    class Stop(Exception):
        pass

    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 7:
            raise Stop

    calls = _Calls(policy)
    prompts = [policy.encode("copy:123="), policy.encode("copy:1234=")]
    groups = sample(policy, prompts, SamplingSettings(2, 10, temperature=0.0, batch_size=2), [0, 0], tick)
    assert next(groups)[0] == 1  # the longer prompt, of 5 tokens, comes first
    with pytest.raises(Stop):  # at the second token of the shorter prompt
        next(groups)
    assert len(calls.shapes) == 5 + 1


def test_sampling_takes_no_gradient_and_leaves_the_global_generator_alone(tiny: Policy, prompts: IDS) -> None:
    before = torch.random.get_rng_state()
    drawn(tiny, prompts, SamplingSettings(2, 3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in tiny.parameters())


@pytest.mark.parametrize("shared", [True, False])
def test_under_autocast_caches_are_of_its_precision_and_tokens_of_the_policy(
    policy: Policy, prompts: IDS, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Use bfloat16 as on a GPU, with one copy of a prompt and with one for each row."""
    policy.mixed_precision, policy.shares_prompts = True, shared
    kept: list[torch.dtype] = []

    def note(cache: ColumnCache, *arguments: Any) -> None:
        insert(cache, *arguments)
        kept.extend(states.dtype for layer in cache.cache.layers for states in (layer.keys, layer.values))

    def note_prompts(cache: PromptCache, *arguments: Any) -> None:
        insert_prompts(cache, *arguments)
        kept.extend(states.dtype for layer in cache.layers for states in layer)

    insert, insert_prompts = ColumnCache.insert, PromptCache.insert
    monkeypatch.setattr(ColumnCache, "insert", note)
    monkeypatch.setattr(PromptCache, "insert", note_prompts)
    completions = [c for group in drawn(policy, prompts, SamplingSettings(4, 8)) for c in group]
    assert set(kept) == {torch.bfloat16}
    repeated = [prompt for prompt in prompts for _ in range(4)]
    with torch.no_grad():
        logprobs_BT, _, mask_BT = policy.logprobs(repeated, [c.token_ids for c in completions])
    drawn_K = torch.tensor([logprob for completion in completions for logprob in completion.logprobs])
    assert 1e-5 < float((drawn_K - logprobs_BT[mask_BT].cpu()).abs().mean()) < 0.05


@pytest.mark.parametrize(("step", "read"), [(1, True), (64, False)], ids=["cpu", "gpu"])
def test_with_columns_in_steps_transformers_reads_no_mask(
    policy: Policy, prompts: IDS, monkeypatch: pytest.MonkeyPatch, step: int, read: bool
) -> None:
    """A GPU's columns come in steps. To see whether all tokens of a mask are seen, the host would wait for the GPU."""
    policy.shares_prompts = False
    settings = SamplingSettings(4, 8, batch_size=8)
    expected = drawn(policy, prompts, settings)
    asked: list[int] = []
    skip = masking_utils._ignore_causal_mask_sdpa

    def ignore(padding_mask: Tensor, q_length: int, *rest: Any, **options: Any) -> bool:
        asked.append(q_length)
        return skip(padding_mask, q_length, *rest, **options)

    monkeypatch.setattr(masking_utils, "_ignore_causal_mask_sdpa", ignore)
    monkeypatch.setattr(cache, "column_step", lambda device: step)
    found = drawn(policy, prompts, settings)
    assert (1 in asked) == read
    assert max(asked) > 1  # prefilling reads it once
    for one, other in zip(found, expected, strict=True):
        assert [c.token_ids for c in one] == [c.token_ids for c in other]
        assert [c.logprobs for c in one] == [pytest.approx(c.logprobs, abs=1e-4) for c in other]


def test_logits_that_are_not_numbers_do_not_crash_sampling(policy: Policy, prompts: IDS) -> None:
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(float("nan"))
    for group in drawn(policy, prompts, SamplingSettings(2, 3)):
        for completion in group:
            assert all(0 <= i < 259 for i in completion.token_ids)
            assert all(value != value for value in completion.logprobs)
