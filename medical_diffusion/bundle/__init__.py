"""What the expressions of bundle configurations call, as ``bundle.<name>``."""

from medical_diffusion.bundle.context import bundle_root
from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.latent_statistics import LatentStatistics
from medical_diffusion.bundle.messages import (
    announce_evaluation,
    announce_sampling,
    announce_training,
    announce_written,
    intensity_limits,
    report_reconstruction,
    sample_provenance,
    samples_folder,
)
from medical_diffusion.bundle.previews import sample_picture, write_preview, write_sample_preview
from medical_diffusion.bundle.reconstruction import NoiseEvaluation, ReconstructionEvaluation
from medical_diffusion.bundle.session import (
    begin,
    end,
    parameters_of,
    process_device,
    require_finished,
    sampler_steps,
    seed_networks,
    set_threads,
    share_of,
    to_device,
    tracking_requested,
    tracking_uri,
)
from medical_diffusion.bundle.settings import Defaults, Settings, select_device
from medical_diffusion.bundle.training_data import TrainingData
from medical_diffusion.bundle.weights import Weights
from medical_diffusion.data.latent_cache import weights_hash

__all__ = [
    "Defaults",
    "Folders",
    "LatentStatistics",
    "NoiseEvaluation",
    "ReconstructionEvaluation",
    "Settings",
    "TrainingData",
    "Weights",
    "announce_evaluation",
    "announce_sampling",
    "announce_training",
    "announce_written",
    "begin",
    "bundle_root",
    "end",
    "intensity_limits",
    "parameters_of",
    "process_device",
    "report_reconstruction",
    "require_finished",
    "sample_picture",
    "sample_provenance",
    "sampler_steps",
    "samples_folder",
    "seed_networks",
    "select_device",
    "set_threads",
    "share_of",
    "to_device",
    "tracking_requested",
    "tracking_uri",
    "weights_hash",
    "write_preview",
    "write_sample_preview",
]
