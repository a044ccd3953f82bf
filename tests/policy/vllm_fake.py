"""A fake of the part of vLLM's HTTP interface that pacedrl uses, with the built-in model.

It receives weights and samples from them as `pacedrl.policy.sampler` does, so every token of its answers is known. It
can die and come back on the same port with other weights, like a process that is killed and restarted.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample
from pacedrl.policy.vllm.worker import open_store, receive

CPU = torch.device("cpu")
DRAWING = threading.Lock()  # the attention pattern is a setting of the model


class FakeVllm:
    """A server on its own port until `die`; `start` brings it back."""

    def __init__(self) -> None:
        self.policy = Policy.load(ModelConfig(), CPU)
        self.port = 0
        self.about: dict[str, Any] = {
            "device": "cpu",
            "logprobs_mode": "processed_logprobs",
            "max_model_len": 4096,
            "data_parallel_size": 1,
        }
        self.missing: set[str] = set()
        """Paths for which it answers 404."""
        self.asked: list[tuple[int, ...]] = []
        """Prompts in the order of their arrival."""
        self.paths: list[str] = []
        self.received = 0
        """Number of complete transfers."""
        self.broken_off = 0
        """Number of requests whose client has closed the connection."""
        self.before: Callable[[int], None] = lambda number: None
        """Called with the number of a prompt's request before the answer; it may raise."""
        self.on_tensor: Callable[[int], None] = lambda number: None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start as a new process, without the weights received before."""
        self.version = "default"
        self.paused = threading.Event()
        self.spoil()
        self._sockets: set[socket.socket] = set()
        self._server = _Quiet(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def die(self) -> None:
        """Stop answering and break all connections, like a killed process."""
        self._server.shutdown()
        self._server.server_close()
        for open_socket in list(self._sockets):
            try:
                open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def spoil(self) -> None:
        """Set weights that no client has sent."""
        generator = torch.Generator().manual_seed(99)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def receive(self, order: dict[str, Any]) -> None:
        store = open_store(order["host"], order["port"])
        own = dict(self.policy.causal_lm.named_parameters())
        for number, (name, tensor) in enumerate(receive(store, 1, order["size"], CPU, order["weights"])):
            self.on_tensor(number)
            with torch.no_grad():
                own.pop(name).copy_(tensor)
        assert not own
        self.received += 1

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, how = body["token_ids"], body["sampling_params"]
        self.asked.append(tuple(prompt))
        self.before(len(self.asked))
        assert not self.paused.is_set()
        assert how["logprobs"] == 0
        assert how["stop_token_ids"] == self.policy.eos_ids
        assert how["detokenize"] == bool(how["stop"])
        stop = tuple(how["stop"])
        settings = SamplingSettings(how["n"], how["max_tokens"], how["temperature"], how["top_p"], stop=stop)
        with DRAWING:
            version = self.version
            ((_, group),) = sample(self.policy, [prompt], settings, [how["seed"]])
        return {
            "choices": [
                {
                    "index": i,
                    "finish_reason": one.finish_reason,
                    "token_ids": one.token_ids,
                    "logprobs": {
                        "content": [
                            {"token_id": token, "logprob": logprob}
                            for token, logprob in zip(one.token_ids, one.logprobs, strict=True)
                        ]
                    },
                    "weight_versions": [{"version": version, "start": 0, "end": len(one.token_ids)}],
                }
                for i, one in reversed(list(enumerate(group)))  # the order of choices is not guaranteed
            ]
        }

    def answer(self, path: str, body: Any) -> Any:
        self.paths.append(path)
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/pause?mode=abort":
            self.paused.set()
        elif path == "/resume":
            self.paused.clear()
        elif path == "/update_weight_version":
            self.version = body["new_version"]
        elif path == "/collective_rpc" and body["method"] == "pacedrl_describe":
            return {"results": [self.about]}
        elif path == "/collective_rpc" and body["method"] == "pacedrl_receive":
            self.receive(json.loads(body["kwargs"]["order"]))
            return {"results": [None]}
        elif path == "/inference/v1/generate":
            return self.generate(body)
        return {}


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of closed connections, which the tests cause."""


class Refusal(Exception):
    """Raised to answer with this status."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


def _handler(fake: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            fake._sockets.add(self.connection)

        def finish(self) -> None:
            fake._sockets.discard(self.connection)
            super().finish()

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self._answer(json.loads(text) if text else None)

        def _answer(self, body: Any) -> None:
            status, answer = 200, None
            if self.path in fake.missing:
                status, answer = 404, {"detail": "Not Found"}
            else:
                try:
                    answer = fake.answer(self.path, body)
                except Refusal as refusal:
                    status, answer = refusal.status, {"error": {"message": str(refusal)}}
                except Exception as error:
                    status, answer = 500, {"error": {"message": str(error)}}
            try:
                if self.connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"":
                    raise ConnectionError
            except BlockingIOError:
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                fake.broken_off += 1

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler
