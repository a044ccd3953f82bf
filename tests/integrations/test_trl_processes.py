"""PacedTrainer on two processes trains the whole policy or an adapter as it does on one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy

SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig
from pacedrl.integrations.trl import PacedTrainer
from pacedrl.tasks.skills import skill_rows

folder, out, batch, adapter = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "lora"
torch.set_num_threads(1)
torch.manual_seed(0)
chosen = []

class Told(PacedTrainer):
    # What is drawn depends on prompt, member and step alone, not on which process draws it.
    def _generate_single_turn(self, prompt_ids, *others):
        chosen.append([key for key in self.keys_of(prompt_ids)][:: self.num_generations])
        completions = []
        for i, ids in enumerate(prompt_ids):
            text = f"{ids} {i % self.num_generations} {self.state.global_step}"
            seed = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
            generator = torch.Generator().manual_seed(seed)
            length = int(torch.randint(3, 9, (), generator=generator))
            completions.append(torch.randint(4, 20, (length,), generator=generator).tolist())
        return completions, None

    def keys_of(self, prompt_ids):
        by_ids = {tuple(ids): key for key, ids in self.prompt_ids.items()}
        return [by_ids[tuple(ids)] for ids in prompt_ids]

def odd(completions, **_):
    return [float(sum(map(ord, text)) % 2) for text in completions]

settings = GRPOConfig(
    output_dir=str(out), per_device_train_batch_size=batch, gradient_accumulation_steps=2, num_generations=4,
    max_completion_length=12, learning_rate=1e-3, lr_scheduler_type="constant", max_steps=4, save_strategy="no",
    report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
)
rows = Dataset.from_list([{"prompt": row["prompt"]} for row in skill_rows(size=40, seed=3)])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
peft = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=True) if adapter else None
trainer = Told(model, odd, settings, rows, processing_class=tokenizer, peft_config=peft)
before = {name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
trainer.train()
after = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
rank = trainer.accelerator.process_index
save_file({name: p.detach() - before[name] for name, p in after if p.requires_grad}, out / f"moved-{rank}.safetensors")
keys = list(trainer.row_of)
told = {"chosen": chosen, "estimates": trainer.scheduler.accuracy_estimate(keys).tolist()}
told["replay"] = [entry.key for entry in trainer.scheduler.replay()]
(out / f"told-{rank}.json").write_text(json.dumps(told))
"""


def train(folder: Path, processes: int, kind: str) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Return what each process logged, and how far its parameters moved."""
    out = folder / f"{kind}-{processes}"
    out.mkdir()
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PACEDRL_CACHE": str(folder / "cache")}
    command = [*start, "script.py", "model", str(out), str(8 // processes), kind]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        (json.loads((out / f"told-{rank}.json").read_text()), load_file(out / f"moved-{rank}.safetensors"))
        for rank in range(processes)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_two_processes_train_what_one_trains(tmp_path: Path, kind: str) -> None:
    Policy.load(ModelConfig(), torch.device("cpu")).save(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)
    ((told, moved),) = train(tmp_path, 1, kind)
    halves = train(tmp_path, 2, kind)
    assert [len(keys) for keys in told["chosen"]] == [4] * 4
    assert len({key for keys in told["chosen"] for key in keys}) > 4
    shares = [half["chosen"] for half, _ in halves]
    assert [first + second for first, second in zip(*shares, strict=True)] == told["chosen"]
    assert told["replay"]
    assert max(float(tensor.abs().max()) for tensor in moved.values()) > 1e-3
    assert all(("lora_" in name) == (kind == "lora") for name in moved)
    for half, own in halves:
        assert half["estimates"] == pytest.approx(told["estimates"], abs=1e-4)
        assert half["replay"] == told["replay"]
        assert own.keys() == moved.keys()
        assert max(float((own[name] - tensor).abs().max()) for name, tensor in moved.items()) < 1e-4
    assert all(torch.equal(halves[0][1][name], halves[1][1][name]) for name in moved)
