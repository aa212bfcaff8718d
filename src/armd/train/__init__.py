"""Training, on one process or many."""

from armd.errors import TrainingStopped
from armd.train.config import OptimConfig, TrainConfig, load_config
from armd.train.loop import TrainResult, train

__all__ = ["OptimConfig", "TrainConfig", "TrainResult", "TrainingStopped", "load_config", "train"]
