"""The configuration. Its defaults are the paper's recipe (arXiv 2602.12642)."""

from pacedrl.config.config import Config
from pacedrl.config.load import apply_override, config_tree, dump_config, load_config, parse_config
from pacedrl.config.sections import LoraConfig, ModelConfig, OptimizerConfig, SamplingConfig, TaskConfig

__all__ = [
    "Config",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SamplingConfig",
    "TaskConfig",
    "apply_override",
    "config_tree",
    "dump_config",
    "load_config",
    "parse_config",
]
