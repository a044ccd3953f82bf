"""The configuration. Its defaults are the paper's recipe (arXiv 2602.12642)."""

from pacedrl.config.config import Config
from pacedrl.config.load import apply_override, config_tree, dump_config, load_config, parse_config
from pacedrl.config.method import (
    DynamicGateConfig,
    FlowRlConfig,
    GateConfig,
    GFlowRlConfig,
    GrpoConfig,
    LiloGateConfig,
    ObjectiveConfig,
    ReplayConfig,
    SelectionConfig,
    TrajectoryBalanceConfig,
)
from pacedrl.config.sections import (
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    TaskConfig,
)

__all__ = [
    "Config",
    "DynamicGateConfig",
    "FlowRlConfig",
    "GFlowRlConfig",
    "GateConfig",
    "GrpoConfig",
    "LiloGateConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ReplayConfig",
    "SamplingConfig",
    "SelectionConfig",
    "TaskConfig",
    "TrajectoryBalanceConfig",
    "apply_override",
    "config_tree",
    "dump_config",
    "load_config",
    "parse_config",
]
