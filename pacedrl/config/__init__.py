"""The configuration. Its defaults ARE the paper's recipe (arXiv 2602.12642)."""

from pacedrl.config.config import Config
from pacedrl.config.load import apply_override, config_tree, dump_config, load_config, parse_config
from pacedrl.config.method import (
    CombinedEstimatorConfig,
    CountsEstimatorConfig,
    DynamicGateConfig,
    FlowRlConfig,
    GateConfig,
    GFlowRlConfig,
    GrpoConfig,
    LiloGateConfig,
    ObjectiveConfig,
    PartitionConfig,
    ReplayConfig,
    SelectionConfig,
    TrajectoryBalanceConfig,
)
from pacedrl.config.sections import (
    DataConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    TaskConfig,
)

__all__ = [
    "CombinedEstimatorConfig",
    "Config",
    "CountsEstimatorConfig",
    "DataConfig",
    "DynamicGateConfig",
    "EvalConfig",
    "FlowRlConfig",
    "GFlowRlConfig",
    "GateConfig",
    "GrpoConfig",
    "LiloGateConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PartitionConfig",
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
