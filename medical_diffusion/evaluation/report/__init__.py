"""One report on synthetic images: figures with intervals, the verdict on memorisation, pictures."""

from medical_diffusion.evaluation.report.measure import Measurement, ReportImages, measure
from medical_diffusion.evaluation.report.utility import Labels
from medical_diffusion.evaluation.report.write import write_report

__all__ = ["Labels", "Measurement", "ReportImages", "measure", "write_report"]
