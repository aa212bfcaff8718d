"""Training on one machine."""

from armd.train.config import OptimConfig, TrainConfig
from armd.train.loop import TrainingStopped, TrainResult, load_config, train

__all__ = ["OptimConfig", "TrainConfig", "TrainResult", "TrainingStopped", "load_config", "train"]
