"""Measure peak memory and time of log-probabilities and their gradient: ours in chunks, and from plain logits.

    python benchmarks/memory.py                      # 4,096 tokens, a vocabulary of 151,936: about two minutes, 11 GB
    python benchmarks/memory.py --tokens 1024

Hidden states and head have the size of Qwen2.5-0.5B (896). The output layer is measured alone, forward and backward,
each way in its own process. The plain way is ``log_softmax(hidden @ head.T)``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import torch

from pacedrl.policy.logprobs import Head, token_logprobs

WAYS = ("ours", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[way] = pool.apply(measure, (way, options.tokens, options.vocabulary, options.hidden))
        memory, seconds, total = found[way]
        print(f"{way:6}{memory / 2**30:8.2f} GiB beyond inputs and weights{seconds:8.1f} s   sum {total:.4f}")
    memory, seconds = (found["ours"][i] / found["plain"][i] for i in (0, 1))
    print(f"ours to plain: memory {memory:.3f}, time {seconds:.2f}")
    if options.json:
        named = {way: dict(zip(("bytes", "seconds"), figures, strict=False)) for way, figures in found.items()}
        options.json.write_text(json.dumps(named, indent=1) + "\n")


def measure(way: str, tokens: int, vocabulary: int, hidden: int) -> tuple[float, float, float]:
    """Return the growth of memory at its peak in bytes, the seconds, and the sum of the log-probabilities."""
    generator = torch.Generator().manual_seed(0)
    hidden_KH = torch.randn(tokens, hidden, generator=generator, requires_grad=True)
    weight_VH = (torch.randn(vocabulary, hidden, generator=generator) / hidden**0.5).requires_grad_()
    target_K = torch.randint(vocabulary, (tokens,), generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    if way == "ours":
        logprob_K, _ = token_logprobs(hidden_KH, Head(weight_VH), target_K)
    else:
        logprob_K = torch.log_softmax(hidden_KH @ weight_VH.T, dim=-1).gather(1, target_K[:, None]).squeeze(1)
    logprob_K.sum().backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return float(peak - before), seconds, float(logprob_K.detach().sum())


if __name__ == "__main__":
    main()
