"""Where completions end, and which text they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import GenerationConfig

from pacedrl.config import parse_config
from pacedrl.errors import InputError
from pacedrl.policy.ends import Ends, turn_end
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample
from pacedrl.policy.vllm.sampler import sampling_parameters

ROLE = "<|im_start|>{{ m.role }}\n"
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "<|im_end|>": "{% for m in messages %}" + ROLE + "{{ m.content }}<|im_end|>\n{% endfor %}" + ASSISTANT,
    # Written only between turns.
    "<|im_start|>": "{% for m in messages %}" + ROLE + "{{ m.content }}{% endfor %}" + ASSISTANT,
    # The first of two tokens, after a space.
    "<|end|>": "{% for m in messages %}"
    + ROLE
    + "{{ m.content }} <|end|>\n{% endfor %}"
    + ASSISTANT.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}"),
    # The last token, because the first closes what the template has opened.
    "<eos>": "{% for m in messages %}"
    + ROLE
    + "<answer>{{ m.content }}</answer>{{ eos_token }}{% endfor %}"
    + ASSISTANT,
    # The token that opens the next turn, which this template always writes.
    "assistant:": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ",
    "### End": "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n### End\n{% endfor %}" + ASSISTANT,
}
NO_END = {
    "nothing is written": "{% for m in messages %}{{ m.content }}\n{% endfor %}",
    "an assistant is refused": "{% if messages[1:] %}{{ raise_exception('one message only') }}{% endif %}",
}


@pytest.fixture
def chat(policy: Policy) -> Policy:
    """The tiny model with several kinds of special tokens in its tokenizer, none of which is named an end token."""
    special = ["<|im_start|>", "<|im_end|>", "<|end|>", "<think>", "</think>", "<answer>", "</answer>"]
    policy.tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    policy.model.resize_token_embeddings(len(policy.tokenizer))
    return policy


def ids_of(policy: Policy, text: str) -> list[int]:
    return list(policy.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(("end", "template"), TEMPLATES.items())
def test_the_end_of_a_turn_is_what_the_template_writes_after_the_assistants_text(
    chat: Policy, end: str, template: str
) -> None:
    chat.tokenizer.chat_template = template
    assert turn_end(chat.tokenizer) == end
    policy = Policy(chat.model, chat.tokenizer, chat.device)
    completion = policy.ends().completion(ids_of(policy, f"42{end}"), [0.0] * len(ids_of(policy, f"42{end}")))
    assert (completion.text, completion.finish_reason) == ("42", "stop")
    assert policy.ends().reached(ids_of(policy, f"42{end}"))
    assert not policy.ends().reached(ids_of(policy, "42"))


@pytest.mark.parametrize("template", NO_END.values(), ids=NO_END.keys())
def test_a_template_may_write_no_end_of_a_turn(chat: Policy, template: str) -> None:
    chat.tokenizer.chat_template = template
    assert turn_end(chat.tokenizer) is None
    assert Policy(chat.model, chat.tokenizer, chat.device).eos_ids == [2]


def test_a_checkpoint_names_the_end_of_a_turn(chat: Policy, tmp_path: Path) -> None:
    chat.tokenizer.chat_template = TEMPLATES["<|im_end|>"]
    Policy(chat.model, chat.tokenizer, chat.device).save(tmp_path)
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2, end]


def test_special_tokens_are_text_but_for_the_one_that_ended_the_completion(chat: Policy) -> None:
    text = "<think>1 , 2</think><answer>é 3</answer>"
    ids = [*ids_of(chat, text), 2]
    assert chat.ends().completion(ids, [0.0] * len(ids)).text == text


def test_a_stop_that_is_a_token_ends_at_the_token(chat: Policy) -> None:
    ends = chat.ends(["</answer>", "\n\n"])
    assert ends.token_ids == [2, chat.tokenizer.convert_tokens_to_ids("</answer>")]
    assert ends.strings == ("\n\n",)
    ids = ids_of(chat, "<answer>3</answer>")
    completion = ends.completion(ids, [0.0] * len(ids))
    assert (completion.token_ids, completion.text) == (ids, "<answer>3")


PIECES = {1: b"ab", 2: b"c", 3: b"\xc3", 4: b"\xa9", 5: b"STO", 6: b"P!", 7: b" ", 8: b"P\xe2", 9: b"", 10: b"d"}


def decode(ids: Sequence[int]) -> str:
    """Decode as a byte tokenizer does."""
    return b"".join(PIECES[i] for i in ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("stop", "drawn", "kept", "text"),
    [
        ("STOP", [1, 5, 6, 2], [1, 5, 6], "ab"),  # it begins and ends inside tokens
        ("é", [1, 3, 4, 2], [1, 3, 4], "ab"),  # two tokens, neither of which is a character
        ("STOP", [5, 8, 2], [5, 8], ""),  # the beginning of a character follows it
        ("bc", [1, 9, 9, 9, 2, 1], [1, 9, 9, 9, 2], "a"),  # tokens without text in between
        ("c", [3, 4, 7, 2, 2], [3, 4, 7, 2], "é "),
        ("x", [1, 2, 1], [1, 2, 1], "abcab"),  # never
    ],
)
def test_a_completion_ends_with_the_token_that_completes_a_string(
    stop: str, drawn: list[int], kept: list[int], text: str
) -> None:
    ends = Ends([], [stop], decode)
    reached = [count for count in range(1, len(drawn) + 1) if ends.reached(drawn[:count])]
    assert reached[:1] == ([len(kept)] if stop != "x" else [])
    completion = ends.completion(drawn, [-float(i) for i in range(len(drawn))])
    assert completion.token_ids == kept
    assert completion.logprobs == [-float(i) for i in range(len(kept))]
    assert completion.text == text
    assert completion.finish_reason == ("length" if stop == "x" else "stop")


def test_only_a_tail_of_a_long_completion_is_decoded_at_each_token() -> None:
    decoded: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return decode(ids)

    ends = Ends([], ["STOP!"], counting)
    ids = [10] * 1000
    assert not any(ends.reached(ids[:count]) for count in range(1, 1001))
    assert max(decoded) < 20


@pytest.mark.parametrize("decoding", ["columns", "padded", "equal"])
def test_both_ways_of_sampling_end_at_strings(tiny: Policy, prompts: list[list[int]], decoding: str) -> None:
    plain = SamplingSettings(3, 12, temperature=1.0, batch_size=9)
    whole = dict(sample(tiny, prompts, plain, range(5), decoding=decoding))  # type: ignore[arg-type]
    text = whole[2][0].text
    stop = text[1:3]
    assert len(stop) == 2
    settings = SamplingSettings(3, 12, temperature=1.0, batch_size=9, stop=(stop,))
    cut = 0
    for i, group in sample(tiny, prompts, settings, range(5), decoding=decoding):  # type: ignore[arg-type]
        for one, other in zip(group, whole[i], strict=True):
            count = len(one.token_ids)
            assert one.token_ids == other.token_ids[:count]
            assert one.logprobs == pytest.approx(other.logprobs[:count], abs=1e-5)
            assert one.text == other.text.partition(stop)[0]
            assert (count < len(other.token_ids)) == (stop in other.text)
            cut += stop in other.text
    assert cut


def test_vllm_is_told_where_completions_end(chat: Policy) -> None:
    tokens = sampling_parameters(chat, SamplingSettings(2, 8, stop=("</answer>",)), seed=1)
    assert tokens["stop_token_ids"] == [2, chat.tokenizer.convert_tokens_to_ids("</answer>")]
    assert (tokens["stop"], tokens["detokenize"]) == ([], False)
    strings = sampling_parameters(chat, SamplingSettings(2, 8, stop=("\n\n",)), seed=1)
    assert strings["stop_token_ids"] == [2]
    assert (strings["stop"], strings["detokenize"], strings["skip_special_tokens"]) == (["\n\n"], True, False)


def test_stops_in_a_configuration() -> None:
    assert parse_config({"sampling": {"stop": "</answer>"}}).sampling.stop == ["</answer>"]
    with pytest.raises(InputError, match=r"sampling.stop: an empty string is in every text"):
        parse_config({"sampling": {"stop": ["a", ""]}})
