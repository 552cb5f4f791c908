"""Fine-tuning for segmentation as bundles run it: labelled data, validation, volumes to label maps, reports."""
