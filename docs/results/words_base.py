"""Fine-tune SmolLM2-135M-Instruct on some of SVAMP's equations, as the start of the study on words: make results-words.

    python docs/results/words_base.py models/smollm2 FOLDER/warm_up.jsonl FOLDER/base

One pass over the rows gives reinforcement learning something to strengthen. It takes about three minutes on two CPU
cores.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch

from pacedrl.config import ModelConfig
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.policy import Policy

LEARNING_RATE = 2e-5
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    weights = next(options.model.glob("*.gguf")).name
    policy = Policy.load(ModelConfig(name=str(options.model), gguf_file=weights), resolve_device("auto"))
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        prompts = [policy.encode(row["prompt"]) for row in batch]
        answers = [[*policy.tokenizer(row["equation"]).input_ids, policy.eos_ids[0]] for row in batch]
        logprobs_BT, _, mask_BT = policy.logprobs(prompts, answers)
        loss = -logprobs_BT.sum() / mask_BT.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"{first + len(batch)}/{len(rows)}: {loss.item():.3f} nats per token", flush=True)
    partial = options.out.with_name(options.out.name + ".partial")  # so that the folder exists only when it is complete
    policy.save(partial)
    partial.rename(options.out)


if __name__ == "__main__":
    main()
