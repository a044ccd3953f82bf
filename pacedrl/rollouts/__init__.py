"""Rollouts for training and evaluation: prompts are loaded and encoded, completions sampled and judged."""
