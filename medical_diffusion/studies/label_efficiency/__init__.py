"""Label-efficiency study: segmentation with and without pre-training at growing shares of labels (Figures 4 and 5)."""

from medical_diffusion.studies.label_efficiency.plan import NO_PRETRAINING, Arm, Cell, Plan, parse_arms, parse_shard
from medical_diffusion.studies.label_efficiency.runner import BundleRunner, CellRunner
from medical_diffusion.studies.label_efficiency.study import run_label_efficiency_study

__all__ = [
    "NO_PRETRAINING",
    "Arm",
    "BundleRunner",
    "Cell",
    "CellRunner",
    "Plan",
    "parse_arms",
    "parse_shard",
    "run_label_efficiency_study",
]
