"""HTTP calls from a training process to a vLLM server, which may fail at any moment."""

import contextlib
import json
import random
import socket
import threading
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from pacedrl.errors import InputError

ANSWER_S = 30.0
"""Time limit of short calls, which a server's engine answers between two tokens."""
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 10.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""Seconds and tries until a connection to a machine that has vanished is broken, if the system supports the option."""


class Lost(Exception):
    """The server cannot be reached or failed to answer a call. It may come back."""


def delay(failures: int) -> float:
    """Return the seconds to wait after consecutive failures: doubled each time, shortened at random by up to half."""
    return min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)


class Server:
    """Calls to one server. They raise `Lost` if it fails, and InputError if it was started with the wrong options."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.own_address = ""
        """The address at which the server reaches this machine; known after the first call."""
        self._parts = urlsplit(url)
        self._lock = threading.Lock()
        self._open: set[HTTPConnection] = set()
        self._abandoned = False

    def version(self) -> str:
        """Return the version of the server's weights."""
        return str(self.call("GET", "/weight_info")["weight_version"])

    def workers(self) -> list[dict[str, Any]]:
        """Return the description of each worker (`WeightReceiver.pacedrl_describe`)."""
        try:
            answer = self.call("POST", "/collective_rpc", {"method": "pacedrl_describe"})
        except Lost as lost:
            if "pacedrl_describe" in str(lost):  # vLLM's message about a missing method contains its name
                raise InputError(
                    f"sampling.servers: {self.url} cannot be given weights: start it with "
                    "--worker-extension-cls pacedrl.policy.vllm.worker.WeightReceiver",
                    docs="serving",
                ) from None
            raise
        return list(answer["results"])

    def generate(
        self, prompt_ids: Sequence[int], parameters: dict[str, Any], version: str, timeout_s: float
    ) -> list[tuple[list[int], list[float]]]:
        """Sample a prompt's completions from the weights of ``version``: their token ids and log-probabilities."""
        body = {"token_ids": list(prompt_ids), "sampling_params": parameters}
        answer = self.call("POST", "/inference/v1/generate", body, timeout_s)
        completions = []
        for choice in sorted(answer["choices"], key=lambda choice: int(choice["index"])):
            if choice["finish_reason"] not in ("stop", "length"):
                raise Lost(f"it gave up a completion ({choice['finish_reason']})")
            if {span["version"] for span in choice["weight_versions"]} != {version}:
                raise Lost("it has other weights than the current ones")
            drawn = choice["logprobs"]["content"]
            completions.append((list(choice["token_ids"]), [float(token["logprob"]) for token in drawn]))
        return completions

    def call(self, verb: str, path: str, body: Any = None, timeout_s: float = ANSWER_S) -> Any:
        """Send a request and return the JSON answer."""
        try:
            status, text = self._exchange(verb, path, body, timeout_s)
        except (OSError, HTTPException) as error:
            raise Lost(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error
        if status >= 500:
            raise Lost(f"HTTP {status} from {path}: {_message(text)}")
        if status == 404:
            raise InputError(
                f"sampling.servers: {self.url} has no {path}: it must be vLLM 0.32 or later, started with "
                "VLLM_SERVER_DEV_MODE=1 in its environment",
                docs="serving",
            )
        if status >= 400:
            raise InputError(
                f"sampling.servers: {self.url}{path} refuses (HTTP {status}): {_message(text)}", docs="serving"
            )
        try:
            return json.loads(text)
        except ValueError as error:
            raise Lost(f"{path} did not answer with JSON") from error

    def abandon(self) -> None:
        """Abort all calls in progress: they raise `Lost`, and vLLM stops working on them."""
        with self._lock:
            self._abandoned = True
            for connection in self._open:
                _break(connection)

    def _exchange(self, verb: str, path: str, body: Any, timeout_s: float) -> tuple[int, bytes]:
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        connection = kind(str(self._parts.hostname), self._parts.port, timeout=timeout_s)
        try:
            connection.connect()
            self.own_address = connection.sock.getsockname()[0]
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEP_ALIVE.items():
                if hasattr(socket, name):
                    connection.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            with self._lock:
                self._open.add(connection)
                if self._abandoned:
                    _break(connection)
            payload = None if body is None else json.dumps(body)
            # One connection per call: servers close idle connections, which would look like a failure.
            connection.request(verb, path, payload, {"Content-Type": "application/json", "Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _break(connection: HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):  # it may already be closed
        connection.sock.shutdown(socket.SHUT_RDWR)


def _message(text: bytes) -> str:
    """Return the message of an error's answer on one line."""
    try:
        answer = json.loads(text)
        said = answer["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = text.decode("utf-8", "replace")
    line = " ".join(str(said).split())
    return line if len(line) <= 300 else line[:299] + "…"
