"""Prompts, and the verifiers that judge their completions."""
