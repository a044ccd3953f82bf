"""Which servers a configuration may name, and weight transfers that succeed or break off."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pacedrl.cli import main
from pacedrl.config import parse_config
from pacedrl.interrupt import Interrupted
from pacedrl.policy.vllm.weights import WeightKeeper
from pacedrl.policy.vllm.worker import WeightReceiver, describe, open_store, receive, send

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ("{engine: vllm_server, servers: [gpu7:8000]}", r"sampling\.servers: 'gpu7:8000' is not of the form http"),
        ("{engine: vllm_server, servers: ['http://a:1/v1']}", r"'http://a:1/v1' is not of the form http://HOST:PORT"),
        ("{engine: vllm_server, servers: ['http://a:99999']}", r"'http://a:99999' is not of the form http://HOST:PORT"),
        (
            "{engine: vllm_server, servers: ['http://a:1', 'http://a:1/']}",
            r"sampling\.servers: a server is named twice",
        ),
        ("{engine: vllm_server}", r"sampling\.servers: list servers if, and only if, sampling\.engine=vllm_server"),
        ("{servers: ['http://a:1']}", r"sampling\.servers: list servers if, and only if, sampling\.engine=vllm_server"),
    ],
)
def test_servers_that_make_no_sense_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sampling: str, said: str
) -> None:
    (tmp_path / "c.yaml").write_text(f"sampling: {sampling}\nrun: {{dir: {tmp_path / 'run'}}}\n")
    assert main(["train", str(tmp_path / "c.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line)


def test_servers_that_make_sense_are_taken() -> None:
    servers = ["http://gpu7:8000", "https://[::1]:8000/"]
    config = parse_config({"sampling": {"engine": "vllm_server", "servers": servers}})
    assert config.sampling.servers == servers


def test_waiting_for_servers_that_are_lost_can_be_broken_off() -> None:
    """`Trainer` passes its check for Ctrl-C as ``tick``."""
    keeper = WeightKeeper(
        ["http://127.0.0.1:9"], CPU, tokens=8, patience_s=600.0
    )  # no server listens on the port "discard"
    calls: list[float] = []

    def tick() -> None:
        calls.append(time.monotonic())
        if len(calls) == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        keeper.publish([("weight", torch.zeros(2))], tick)
    keeper.close()
    assert calls[-1] - calls[0] < 10.0


def test_weights_arrive_as_they_were_sent() -> None:
    weights = [("a", torch.randn(3, 5)), ("b", torch.arange(7)), ("c", torch.randn(2, 2, dtype=torch.bfloat16).t())]
    store = open_store("127.0.0.1")
    thread = threading.Thread(target=send, args=(store, 2, CPU, weights))
    thread.start()
    arrived = list(receive(open_store("127.0.0.1", store.port), 1, 2, CPU, describe(weights)))
    thread.join()
    assert [name for name, _ in arrived] == ["a", "b", "c"]
    for (_, sent), (_, got) in zip(weights, arrived, strict=True):
        assert got.dtype == sent.dtype
        assert torch.equal(got, sent)


def test_a_worker_whose_weights_stop_coming_finishes_loading_before_it_says_so() -> None:
    weights = [("a", torch.ones(3)), ("b", torch.ones(4)), ("c", torch.ones(5))]
    store = open_store("127.0.0.1")
    loaded: list[tuple[str, torch.Tensor]] = []

    class Worker(WeightReceiver):
        rank = 0
        device = CPU

        def reload_weights(self, weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
            loaded.extend(weights_iterator)

    def stop_early() -> None:
        with pytest.raises(RuntimeError, match="out of memory"):
            send(store, 2, CPU, interrupted())

    def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
        yield weights[0]
        raise RuntimeError("out of memory")

    thread = threading.Thread(target=stop_early)
    thread.start()
    order = {"host": "127.0.0.1", "port": store.port, "size": 2, "device": "cpu", "weights": describe(weights)}
    with pytest.raises(RuntimeError, match="the weights did not arrive"):
        Worker().pacedrl_receive(json.dumps(order))
    thread.join()
    assert [(name, len(tensor)) for name, tensor in loaded] == [("a", 3), ("b", 4), ("c", 5)]
    assert loaded[0][1].tolist() == [1.0] * 3
    assert loaded[1][1].tolist() == [0.0] * 4
