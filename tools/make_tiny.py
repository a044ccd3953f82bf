"""Make the tiny base model: ``python tools/make_tiny.py [--out DIR] [--steps N] [--seed S]``.

A small Llama is pretrained on demonstrations of the built-in skills in which some digits of the answers are wrong. It
learns both the skills and the noise: the right digit is the most likely one, but a sampled answer is often wrong.
Reinforcement learning can then sharpen what the base model has partly learned.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pacedrl.assets import TINY_MODEL
from pacedrl.tasks.skills import draw_row, skill_rows

NOISE = {
    "copy": 0.0,  # saturated from the start
    "double": 0.10,
    "reverse": 0.15,
    "sort": 0.15,
    "negate": 0.20,
    "rotate": 0.30,
    "add": 0.90,  # all digits are equally likely, so there is nothing to learn or to sharpen
}
"""Share of wrong digits in each skill's demonstrations."""

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def make_tokenizer() -> Any:
    """Make a tokenizer of one token per byte, which can encode any text and puts a BOS first, as in pretraining."""
    alphabet = [PAD, BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, alphabet.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: Any) -> Any:
    """Make a randomly initialised Llama of about 0.2M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def demonstration(skill: str, rng: random.Random, noise: float) -> tuple[str, str]:
    """Draw a training prompt and its answer, in which each digit is replaced by another with probability ``noise``."""
    row = draw_row("train", skill, rng)
    noisy = (rng.choice("0123456789".replace(d, "")) if rng.random() < noise else d for d in row["answer"])
    return row["prompt"], "".join(noisy)


def pretrain(
    model: Any, tokenizer: Any, *, steps: int, seed: int, batch_size: int = 256, peak_lr: float = 4e-3
) -> None:
    """Train the model to predict the demonstrations' answers, by AdamW with warm-up and linear decay to zero."""
    rng = random.Random(seed)
    names = list(NOISE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    model.train()
    for step in range(steps):
        pairs = [demonstration(name, rng, noise_at(name, step / steps)) for name in rng.choices(names, k=batch_size)]
        pairs.sort(key=lambda pair: len(pair[0]))
        tokens = sum(len(answer) + 1 for _, answer in pairs)
        optimizer.zero_grad()
        total = 0.0
        # Rows are grouped by length, which gives the same gradient with a third less padding.
        for start in range(0, batch_size, batch_size // 4):
            input_ids_BT, targets_BT = _encode(tokenizer, pairs[start : start + batch_size // 4])
            logits_BTV = model(input_ids=input_ids_BT).logits[:, :-1]
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT[:, 1:].flatten(), reduction="sum") / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {total:.3f}", flush=True)
    model.eval()


def noise_at(skill: str, progress: float) -> float:
    """Return the skill's noise at a fraction of pretraining. It grows over the first half: clean digits teach faster.

    A skill with more than half noise has all of it from the start, so that the model never learns it.
    """
    full = NOISE[skill]
    return full if full > 0.5 else full * min(1.0, 2 * progress)


def _encode(tokenizer: Any, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded token ids, and as targets the same ids with -100 (ignored) outside the answers."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = tokenizer([answer + EOS for _, answer in pairs], add_special_tokens=False)["input_ids"]
    pairs_of_ids = list(zip(prompts, answers, strict=True))
    input_ids = [torch.tensor(prompt + answer) for prompt, answer in pairs_of_ids]
    targets = [torch.tensor([-100] * len(prompt) + answer) for prompt, answer in pairs_of_ids]
    pad = partial(pad_sequence, batch_first=True)
    return pad(input_ids, padding_value=tokenizer.pad_token_id), pad(targets, padding_value=-100)


def accuracies(model: Any, tokenizer: Any, rows: list[dict[str, str]], **generate: Any) -> dict[str, float]:
    """Return each skill's share of right completions, from plain ``generate`` with the given options."""
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(rows), 512):
        batch = rows[start : start + 512]
        inputs = tokenizer([row["prompt"] for row in batch], padding=True, return_tensors="pt")
        output_BT = model.generate(**inputs, max_new_tokens=12, **generate)
        texts = tokenizer.batch_decode(output_BT[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(batch, texts, strict=True):
            right[row["skill"]].append(text == row["answer"])
    return {skill: sum(hits) / len(hits) for skill, hits in right.items()}


def make_tiny(out: Path, *, steps: int = 1200, seed: int = 0) -> Any:
    """Pretrain, save and return the model. The same arguments give the same weights."""
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(tokenizer)
        pretrain(model, tokenizer, steps=steps, seed=seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model


def main() -> None:
    """Make the model and print its accuracy on prompts that it was not trained on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=TINY_MODEL, help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1200, help="pretraining steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_tiny(options.out, steps=options.steps, seed=options.seed)
    print_table(model, make_tokenizer())


def print_table(model: Any, tokenizer: Any, size: int = 3500) -> None:
    """Print each skill's test accuracy: sampled at temperature 1 (all, 2 to 4 and 6 to 8 digits) and greedy."""
    rows = skill_rows("test", size=size)
    subsets = {
        "all": rows,
        "short": [row for row in rows if len(row["answer"]) <= 4],
        "long": [row for row in rows if len(row["answer"]) >= 6],
    }
    sampled = {name: accuracies(model, tokenizer, subset, do_sample=True, top_k=0) for name, subset in subsets.items()}
    greedy = accuracies(model, tokenizer, rows, do_sample=False)
    print("| skill | wrong digits | sampled | 2-4 digits | 6-8 digits | greedy |\n|---|---|---|---|---|---|")
    for skill, noise in NOISE.items():
        columns = [sampled[name][skill] for name in subsets] + [greedy[skill]]
        print(f"| {skill} | {noise:.2f} | " + " | ".join(f"{value:.2f}" for value in columns) + " |")
    print(f"{sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
