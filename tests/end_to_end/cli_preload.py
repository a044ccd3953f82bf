"""Imports all that the command line imports when it is used, once, in the fork server of `cli_process`."""

import peft  # noqa: F401
import rich.progress  # noqa: F401
import torch
import transformers  # noqa: F401

import pacedrl.doctor
import pacedrl.evaluation.evaluate
import pacedrl.training.trainer
import pacedrl.view  # noqa: F401
from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy

torch.set_num_threads(1)
# transformers imports a model's modules when one is loaded
Policy.load(ModelConfig(), torch.device("cpu"))
