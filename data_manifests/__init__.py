"""Data manifests that come with the package."""
