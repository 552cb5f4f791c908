"""One step per stage, moving averages, checkpoints and the engine that runs them."""

from medical_diffusion.training.autoencoder_step import AutoencoderStep
from medical_diffusion.training.checkpoint import Progress, StageCheckpoint, TrainableStep
from medical_diffusion.training.diffusion_step import DiffusionStep, NoisePredictionInferer
from medical_diffusion.training.ema import ExponentialMovingAverage
from medical_diffusion.training.handlers import ProgressBar, TensorBoardLogs, Validation
from medical_diffusion.training.linear_skip import LinearSkipFit
from medical_diffusion.training.pretrain_step import PretextObjective, PretrainStep, pretext_objective
from medical_diffusion.training.segmentation_step import SegmentationStep, parameter_groups
from medical_diffusion.training.trainer import StepTrainer

__all__ = [
    "AutoencoderStep",
    "DiffusionStep",
    "ExponentialMovingAverage",
    "LinearSkipFit",
    "NoisePredictionInferer",
    "PretextObjective",
    "PretrainStep",
    "Progress",
    "ProgressBar",
    "SegmentationStep",
    "StageCheckpoint",
    "StepTrainer",
    "TensorBoardLogs",
    "TrainableStep",
    "Validation",
    "parameter_groups",
    "pretext_objective",
]
