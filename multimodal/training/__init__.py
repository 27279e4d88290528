"""The training loop, crash-safe state, progress, the frozen guarantee. Knows modules and batches, but no modality."""

from multimodal.training.config import TrainingConfig
from multimodal.training.frozen import check_frozen, frozen_digests, frozen_fingerprint
from multimodal.training.learns import Learns, learning, open_parameters, recompute
from multimodal.training.loop import Step, train
from multimodal.training.loss import sampled_token_loss, token_loss
from multimodal.training.metrics import Metrics, read_metrics
from multimodal.training.placement import check_processes, prepare, use_cores
from multimodal.training.progress import LiveProgress
from multimodal.training.publication import write_safetensors
from multimodal.training.schedule import schedule
from multimodal.training.state import Position, load_state, newest_state, save_state
from multimodal.training.stop import StopSignal

__all__ = [
    "Learns",
    "LiveProgress",
    "Metrics",
    "Position",
    "Step",
    "StopSignal",
    "TrainingConfig",
    "check_frozen",
    "check_processes",
    "frozen_digests",
    "frozen_fingerprint",
    "learning",
    "load_state",
    "newest_state",
    "open_parameters",
    "prepare",
    "read_metrics",
    "recompute",
    "sampled_token_loss",
    "save_state",
    "schedule",
    "token_loss",
    "train",
    "use_cores",
    "write_safetensors",
]
