"""Sampling with vLLM, in this process or by servers that are sent the weights."""
