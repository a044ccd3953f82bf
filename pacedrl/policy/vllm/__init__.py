"""Sampling with vLLM, in this process or on servers that receive the weights."""

from importlib.util import find_spec

INSTALL = 'pip install "pacedrl[vllm]"'
"""The command that installs vLLM, which runs on Linux."""


def installed() -> bool:
    """Whether vLLM is installed. It is not imported, which would take seconds and memory of the GPU."""
    return find_spec("vllm") is not None
