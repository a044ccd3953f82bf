import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pacedrl.assets import TINY_MODEL
from pacedrl.tasks.skills import MAX_DIGITS, SKILLS, skill_rows

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from make_tiny import NOISE, accuracies, demonstration, make_tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY_MODEL)


def test_it_is_tiny_and_tied(model: Any) -> None:
    assert model.num_parameters() <= 500_000
    assert sum(file.stat().st_size for file in TINY_MODEL.iterdir()) <= 2_000_000
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32


def test_the_folder_is_a_standard_one() -> None:
    assert {file.name for file in TINY_MODEL.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_special_tokens_agree(model: Any, tokenizer: Any) -> None:
    for owner in (model.config, model.generation_config):
        assert owner.pad_token_id == tokenizer.pad_token_id == 0
        assert owner.bos_token_id == tokenizer.bos_token_id == 1
        assert owner.eos_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == model.config.vocab_size


def test_a_prompt_is_a_bos_and_its_characters(tokenizer: Any) -> None:
    ids = tokenizer("add:38+24=")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(ids[1:]) == list("add:38+24=")
    assert tokenizer("add:38+24=", add_special_tokens=False)["input_ids"] == ids[1:]


@pytest.mark.parametrize("text", ["add:38+24=", "  What is $\\frac{1}{2}$?\n\n", "π ≈ 3.14, naïve 中文 🙂", ""])
def test_any_text_survives_the_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_greedy_answers_solve_the_clean_skill_and_end(model: Any, tokenizer: Any) -> None:
    rows = skill_rows("test", skills=["copy"], size=200)
    assert accuracies(model, tokenizer, rows, do_sample=False)["copy"] > 0.95


def test_sampled_accuracies_span_the_range(model: Any, tokenizer: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sampled = accuracies(model, tokenizer, skill_rows("test", size=1400), do_sample=True, top_k=0)
    assert sampled["copy"] > 0.9
    assert sampled["add"] < 0.05
    between = {skill: accuracy for skill, accuracy in sampled.items() if 0.05 <= accuracy <= 0.7}
    assert between.keys() == {"double", "reverse", "sort", "negate", "rotate"}, sampled


def test_the_right_answer_is_the_likeliest_where_digits_are_mostly_right(model: Any, tokenizer: Any) -> None:
    learned = [skill for skill in SKILLS if NOISE[skill] < 0.5]
    greedy = accuracies(model, tokenizer, skill_rows("test", skills=learned, size=600), do_sample=False)
    assert min(greedy.values()) > 0.8, greedy


def test_longer_prompts_are_harder(model: Any, tokenizer: Any) -> None:
    rows = skill_rows("test", skills=["reverse"], size=800)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        by_length = {
            length: accuracies(
                model, tokenizer, [row for row in rows if len(row["answer"]) == length], do_sample=True, top_k=0
            )["reverse"]
            for length in (3, MAX_DIGITS)
        }
    assert by_length[3] > by_length[MAX_DIGITS] + 0.15, by_length


def test_demonstrations_are_as_noisy_as_said() -> None:

    rng = random.Random(0)
    for skill, noise in NOISE.items():
        wrong = total = 0
        for _ in range(500):
            prompt, answer = demonstration(skill, rng, noise)
            assert re.fullmatch(rf"{skill}:[\d+]+=", prompt)
            right = SKILLS[skill](prompt.removesuffix("=").split(":")[1])
            wrong += sum(a != b for a, b in zip(answer, right, strict=True))
            total += len(right)
        assert wrong / total == pytest.approx(noise, abs=0.04)


def test_a_seed_decides_the_weights_and_the_folder_loads(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_tiny(tmp_path / name, steps=2, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "a")("copy:12=", return_tensors="pt")
    assert loaded.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
