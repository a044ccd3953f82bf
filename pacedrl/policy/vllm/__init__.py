"""Sampling with vLLM, in this process or on servers that receive the weights."""
