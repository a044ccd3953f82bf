"""One run of a comparison: train, then evaluate the last policy with many samples."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pacedrl.config import load_config
from pacedrl.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_STOPPED, InputError
from pacedrl.evaluation.evaluate import evaluate
from pacedrl.lab.measures import FINAL
from pacedrl.paths import replace_text
from pacedrl.rollouts.engines import evaluation_settings
from pacedrl.tasks.pool import VerifierPool
from pacedrl.training.trainer import Trainer, TrainingStopped


def train_and_evaluate(path: Path, ks: Sequence[int], overrides: Sequence[str]) -> int:
    """Start or resume the run, write final.json at its end, and return the exit code that ``pacedrl train`` would."""
    try:
        trainer = Trainer(load_config(path, list(overrides)))
        summary = trainer.train()
        if summary.interrupted:
            return EXIT_INTERRUPTED
        config = trainer.config
        settings = replace(evaluation_settings(config), group_size=max(ks))
        trainer.sampler.sync(trainer.policy)
        with VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib) as pool:
            results = evaluate(trainer.sampler, pool, trainer.eval_tasks, settings, ks, config.run.seed)
        text = json.dumps({"results": [asdict(result) for result in results]}, indent=2)
        replace_text(config.run.dir / FINAL, text + "\n")
    except InputError as error:
        print(f"pacedrl: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except TrainingStopped as stopped:
        print(f"pacedrl: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    return 0
