"""Sampling from fake vLLM servers that fail and come back: no group comes twice, and none is from old weights."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm_fake import DRAWING, FakeVllm, Refusal

from pacedrl.config import SamplingConfig
from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample
from pacedrl.policy.vllm import client as vllm_client
from pacedrl.policy.vllm import weights as vllm_weights
from pacedrl.policy.vllm.client import Lost, Server, delay
from pacedrl.policy.vllm.server import TRIES, VllmServerSampler
from pacedrl.types import Completion

SETTINGS = SamplingSettings(group_size=2, max_new_tokens=6, batch_size=8)
SEEDS = [100 + i for i in range(12)]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(vllm_client, "LAST_DELAY_S", 0.2)
    monkeypatch.setattr(vllm_weights, "LOOK_S", 0.05)


@pytest.fixture
def fakes() -> Iterator[list[FakeVllm]]:
    servers = [FakeVllm(), FakeVllm()]
    yield servers
    for server in servers:
        server.die()


def sampler_of(policy: Policy, fakes: list[FakeVllm], **settings: Any) -> VllmServerSampler:
    patience: Any = {"server_patience_s": 20.0} | settings
    config = SamplingConfig(
        engine="vllm_server", servers=[fake.url for fake in fakes], max_prompt_tokens=32, max_new_tokens=8, **patience
    )
    return VllmServerSampler(policy, config)


def twelve(policy: Policy) -> list[list[int]]:
    return [policy.encode(f"sort:{i}{9 - i % 9}{i % 7}=") for i in range(12)]


def drawn(groups: Iterator[tuple[int, list[Completion]]]) -> dict[int, list[Completion]]:
    """Return the groups by prompt; fail if one comes twice."""
    found: dict[int, list[Completion]] = {}
    for i, group in groups:
        assert i not in found
        found[i] = group
    return found


def assert_drawn_from(policy: Policy, found: dict[int, list[Completion]], prompts: list[list[int]]) -> None:
    """Assert that every group is what our own sampler draws from this policy with the same seed."""
    own = dict(sample(policy, prompts, SETTINGS, SEEDS[: len(prompts)]))
    assert found.keys() == own.keys()
    for i, group in own.items():
        for one, other in zip(found[i], group, strict=True):
            assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def change(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))


def test_prompts_are_shared_out_and_each_is_asked_once(policy: Policy, fakes: list[FakeVllm]) -> None:
    prompts = twelve(policy)
    at_once: list[int] = []
    busy, counting = Counter[str](), threading.Lock()

    def meet(fake: FakeVllm) -> None:
        with counting:
            busy[fake.url] += 1
            at_once.append(busy[fake.url])
        time.sleep(0.05)
        with counting:
            busy[fake.url] -= 1

    for fake in fakes:
        fake.before = lambda number, fake=fake: meet(fake)  # type: ignore[misc]
    found = drawn(sampler_of(policy, fakes).sample(prompts, SETTINGS, SEEDS))
    assert_drawn_from(policy, found, prompts)
    asked = [len(fake.asked) for fake in fakes]
    assert sum(asked) == 12
    assert min(asked) >= 4
    assert sorted(tuple(prompt) for prompt in prompts) == sorted(fakes[0].asked + fakes[1].asked)
    assert 2 <= max(at_once) <= SETTINGS.batch_size // SETTINGS.group_size


def test_greedy_completions_are_drawn_once_for_all(policy: Policy, fakes: list[FakeVllm]) -> None:
    settings = SamplingSettings(4, 6, temperature=0.0)
    (group,) = drawn(sampler_of(policy, fakes).sample(twelve(policy)[:1], settings, [1])).values()
    ((_, own),) = sample(policy, twelve(policy)[:1], settings, [1])
    assert [one.token_ids for one in group] == [one.token_ids for one in own]
    assert len(group) == 4


def test_samples_are_of_the_weights_last_synced(policy: Policy, fakes: list[FakeVllm]) -> None:
    prompts = twelve(policy)
    sampler = sampler_of(policy, fakes)
    before = policy.frozen_copy()
    change(policy)
    stale = drawn(sampler.sample(prompts, SETTINGS, SEEDS))
    assert_drawn_from(before, stale, prompts)
    sampler.sync(policy)
    fresh = drawn(sampler.sample(prompts, SETTINGS, SEEDS))
    assert_drawn_from(policy, fresh, prompts)
    assert [one.token_ids for one in stale[0]] != [one.token_ids for one in fresh[0]]
    assert [fake.received for fake in fakes] == [2, 2]
    steps = ["/pause?mode=abort", "/resume", "/update_weight_version"]
    assert [path for path in fakes[0].paths if path in steps] == steps * 2


def test_when_a_server_dies_its_prompts_go_to_another(policy: Policy, fakes: list[FakeVllm]) -> None:
    prompts = twelve(policy)
    sampler = sampler_of(policy, fakes)
    unanswered: list[tuple[int, ...]] = []

    def die_at_the_fourth(number: int) -> None:
        time.sleep(0.05)
        if number == 4:
            fakes[0].die()
            unanswered.extend(fakes[0].asked)

    fakes[0].before = die_at_the_fourth
    found = drawn(sampler.sample(prompts, SETTINGS, SEEDS))
    assert_drawn_from(policy, found, prompts)
    again = set(unanswered) & set(fakes[1].asked)
    assert again  # the prompts it was sampling for when it died
    asked = Counter(fakes[0].asked + fakes[1].asked)
    assert set(asked) == {tuple(prompt) for prompt in prompts}
    assert max(asked.values()) == 2


def test_a_server_that_comes_back_is_given_the_current_weights_before_it_is_asked(
    policy: Policy, fakes: list[FakeVllm], caplog: pytest.LogCaptureFixture
) -> None:
    prompts = twelve(policy)
    sampler = sampler_of(policy, fakes[:1])
    groups = sampler.sample(prompts, SETTINGS, SEEDS)
    found = dict([next(groups)])
    fakes[0].die()
    synced = policy.frozen_copy()
    change(policy)  # training continues, but the server must get the synced weights
    threading.Timer(0.5, fakes[0].start).start()
    found |= drawn(groups)
    assert_drawn_from(synced, found, prompts)
    assert fakes[0].received == 2
    told = [record.getMessage() for record in caplog.records]
    assert any(re.fullmatch(rf"{fakes[0].url}: lost: .*", line) for line in told)
    assert f"{fakes[0].url}: is back, with the current weights" in told


def test_completions_from_other_weights_are_discarded(
    policy: Policy, fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_weights, "LOOK_S", 0.5)  # later than the completions from the other weights
    prompts = twelve(policy)
    sampler = sampler_of(policy, fakes)

    def forget(number: int) -> None:
        if number == 2:  # restarted so fast that no check noticed
            with DRAWING:
                fakes[0].spoil()
                fakes[0].version = "default"

    fakes[0].before = forget
    found = drawn(sampler.sample(prompts, SETTINGS, SEEDS))
    assert_drawn_from(policy, found, prompts)
    assert len(fakes[0].asked) + len(fakes[1].asked) > 12
    deadline = time.monotonic() + 5.0
    while fakes[0].received < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_lost_before_a_sync_gets_the_newest_weights_alone(policy: Policy, fakes: list[FakeVllm]) -> None:
    sampler = sampler_of(policy, fakes)
    fakes[0].die()
    change(policy)
    sampler.sync(policy)
    assert [fake.received for fake in fakes] == [1, 2]
    fakes[1].before = lambda number: time.sleep(0.2)
    threading.Timer(0.1, fakes[0].start).start()
    found = drawn(sampler.sample(twelve(policy), SETTINGS, SEEDS))
    assert_drawn_from(policy, found, twelve(policy))
    assert [fake.received for fake in fakes] == [2, 2]
    assert fakes[0].asked  # it took part again


def test_a_server_restarted_with_the_wrong_options_counts_as_lost(policy: Policy, fakes: list[FakeVllm]) -> None:
    sampler = sampler_of(policy, fakes, server_patience_s=0.5)
    fakes[0].missing = {"/weight_info"}
    assert_drawn_from(policy, drawn(sampler.sample(twelve(policy), SETTINGS, SEEDS)), twelve(policy))
    assert not fakes[0].asked
    sampler.sync(policy)
    fakes[1].die()
    with pytest.raises(InputError, match=rf"0\.5 s \({fakes[0].url}: .*VLLM_SERVER_DEV_MODE=1.*; {fakes[1].url}: Con"):
        list(sampler.sample(twelve(policy), SETTINGS, SEEDS))


def test_a_server_that_breaks_off_after_a_transfer_is_given_the_weights_again(
    policy: Policy, fakes: list[FakeVllm]
) -> None:
    answer, failed = fakes[0].answer, list[str]()

    def fail_once(path: str, body: Any) -> Any:
        if path == "/resume" and not failed:
            failed.append(path)
            raise Refusal(503, "busy")
        return answer(path, body)

    fakes[0].answer = fail_once  # type: ignore[method-assign]
    sampler = sampler_of(policy, fakes[:1])
    assert_drawn_from(policy, drawn(sampler.sample(twelve(policy), SETTINGS, SEEDS)), twelve(policy))
    assert fakes[0].received == 2


def test_a_server_that_hangs_is_given_up(policy: Policy, fakes: list[FakeVllm]) -> None:
    hang = threading.Event()
    fakes[0].before = lambda number: hang.wait(20.0) and None
    sampler = sampler_of(policy, fakes, server_timeout_s=0.3)
    started = time.monotonic()
    found = drawn(sampler.sample(twelve(policy), SETTINGS, SEEDS))
    hang.set()
    assert_drawn_from(policy, found, twelve(policy))
    assert 0.3 < time.monotonic() - started < 10.0


def test_when_all_servers_stay_lost_the_run_ends_with_a_line_that_names_them(
    policy: Policy, fakes: list[FakeVllm]
) -> None:
    sampler = sampler_of(policy, fakes, server_patience_s=0.6)
    for fake in fakes:
        fake.die()
    started = time.monotonic()
    said = rf"none could be used for 0\.6 s \({fakes[0].url}: Connection refused; {fakes[1].url}: Connection refused\)"
    with pytest.raises(InputError, match=said):
        list(sampler.sample(twelve(policy), SETTINGS, SEEDS))
    assert 0.6 < time.monotonic() - started < 5.0
    with pytest.raises(InputError, match=said):
        sampler.sync(policy)


def test_a_prompt_that_makes_servers_fail_ends_the_run(policy: Policy, fakes: list[FakeVllm]) -> None:
    poison = tuple(twelve(policy)[5])

    def fail(fake: FakeVllm) -> None:
        if fake.asked[-1] == poison:
            raise Refusal(500, "out of its mind")

    one = SamplingSettings(2, 6, batch_size=2)
    for fake in fakes:
        fake.before = lambda number, fake=fake: fail(fake)  # type: ignore[misc]
    sampler = sampler_of(policy, fakes)
    said = rf"a prompt failed {TRIES} times, the last time on http://127.*: HTTP 500 from .*: out of its mind"
    with pytest.raises(InputError, match=said):
        list(sampler.sample(twelve(policy), one, SEEDS))
    assert (fakes[0].asked + fakes[1].asked).count(poison) == TRIES


def test_what_a_server_refuses_is_not_asked_again(policy: Policy, fakes: list[FakeVllm]) -> None:
    def refuse(number: int) -> None:
        raise Refusal(400, "n must be at most 1")

    fakes[0].before = refuse
    with pytest.raises(InputError, match=rf"{fakes[0].url}/inference/v1/generate refuses \(HTTP 400\): n must be"):
        list(sampler_of(policy, fakes[:1]).sample(twelve(policy)[:1], SETTINGS, SEEDS[:1]))
    assert len(fakes[0].asked) == 1


def test_what_tick_raises_ends_sampling_and_breaks_off_what_the_servers_are_at(
    policy: Policy, fakes: list[FakeVllm]
) -> None:
    hang = threading.Event()
    fakes[0].before = lambda number: hang.wait(20.0) and None
    sampler = sampler_of(policy, fakes[:1])

    def tick() -> None:
        if fakes[0].asked:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(sampler.sample(twelve(policy), SETTINGS, SEEDS, tick))
    assert time.monotonic() - started < 5.0
    at_it = len(fakes[0].asked)
    hang.set()
    fakes[0].before = lambda number: None
    found = drawn(sampler.sample(twelve(policy), SETTINGS, SEEDS))
    assert_drawn_from(policy, found, twelve(policy))
    assert fakes[0].broken_off == at_it <= SETTINGS.batch_size // SETTINGS.group_size


def test_a_transfer_that_breaks_off_is_made_again_from_its_beginning(policy: Policy, fakes: list[FakeVllm]) -> None:
    def break_off(number: int) -> None:
        if number == 3 and fakes[0].received == 0 and not tried:
            tried.append(1)
            raise RuntimeError("the network is down")

    tried: list[int] = []
    fakes[0].on_tensor = break_off
    found = drawn(sampler_of(policy, fakes[:1]).sample(twelve(policy), SETTINGS, SEEDS))
    assert tried == [1]
    assert_drawn_from(policy, found, twelve(policy))
    assert fakes[0].received == 1


def test_waits_between_tries_double_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "FIRST_DELAY_S", 0.5)
    monkeypatch.setattr(vllm_client, "LAST_DELAY_S", 30.0)
    for failures, longest in [(1, 0.5), (2, 1.0), (5, 8.0), (7, 30.0), (10**6, 30.0)]:
        waits = [delay(failures) for _ in range(200)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert max(waits) - min(waits) > longest / 4


def test_a_server_that_is_lost_is_looked_for_less_and_less_often(
    policy: Policy, fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = sampler_of(policy, fakes)
    sampler.keeper.close()
    for thread in threading.enumerate():
        if thread.name.removeprefix("weights of ") in [fake.url for fake in fakes]:
            thread.join()
    monkeypatch.setattr(vllm_client, "FIRST_DELAY_S", 0.1)
    monkeypatch.setattr(vllm_client, "LAST_DELAY_S", 30.0)
    fakes[1].version = "another run's"
    fakes[0].before = lambda number: time.sleep(0.4)
    seen = len(fakes[1].paths)
    started = time.monotonic()
    list(sampler.sample(twelve(policy), SETTINGS, SEEDS))
    waited = time.monotonic() - started
    assert waited > 1.0
    looks = fakes[1].paths[seen:]
    assert set(looks) == {"/weight_info"}
    assert 3 <= len(looks) <= 2 + 1 + 5  # at the shortest after 0.05, 0.15, 0.35, 0.75, 1.55 s


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"logprobs_mode": "raw_logprobs"}, r"start it with --logprobs-mode processed_logprobs"),
        ({"max_model_len": 39}, r"has room for 39 tokens, but .* may have 40: start it with --max-model-len 40"),
        ({"data_parallel_size": 2}, r"is data-parallel"),
    ],
)
def test_a_server_with_the_wrong_options_is_refused(
    policy: Policy, fakes: list[FakeVllm], wrong: dict[str, Any], said: str
) -> None:
    fakes[1].about |= wrong
    with pytest.raises(InputError, match=f"{fakes[1].url} .*{said}"):
        sampler_of(policy, fakes)
    assert fakes[1].received == 0


def test_a_server_without_the_receiver_or_outside_its_development_mode_is_refused(
    policy: Policy, fakes: list[FakeVllm]
) -> None:
    fakes[0].missing = {"/weight_info"}
    with pytest.raises(InputError, match=rf"{fakes[0].url} has no /weight_info.*VLLM_SERVER_DEV_MODE=1"):
        sampler_of(policy, fakes[:1])

    def answer(path: str, body: Any) -> Any:
        if path == "/weight_info":
            return {"weight_version": "default"}
        raise Refusal(500, "Call to collective_rpc method failed: Method 'pacedrl_describe' is not implemented.")

    fakes[1].answer = answer  # type: ignore[method-assign]
    with pytest.raises(InputError, match=rf"{fakes[1].url} cannot be given weights: start it with --worker-extension"):
        sampler_of(policy, fakes[1:])


def test_a_call_to_a_dead_server_raises_lost(fakes: list[FakeVllm]) -> None:
    server = Server(fakes[0].url + "/")
    assert server.version() == "default"
    assert server.own_address == "127.0.0.1"
    fakes[0].die()
    with pytest.raises(Lost, match="Connection refused"):
        server.version()
