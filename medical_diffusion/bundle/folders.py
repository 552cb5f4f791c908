"""Where a run reads and writes: one folder, by default the bundle's own."""

from __future__ import annotations

from pathlib import Path

from medical_diffusion.files import check_writable


class Folders:
    """Paths of a run.

    Args:
        bundle_root: the bundle's folder.
        run_dir: folder of weights, logs, caches and reports; the bundle's own by default.

    Raises:
        UserError: the folder can not be written to.
    """

    def __init__(self, bundle_root: str | Path, run_dir: str | Path | None = None) -> None:
        self.root = Path(run_dir or bundle_root)
        self.models = self.root / "models"
        self.logs = self.root / "logs"
        self.cache = self.root / "cache"
        self.reports = self.root / "reports"
        self.phantoms = self.root / "data"
        self.samples = self.root / "samples"
        self.preview = self.root / "preview.png"

    def check_writable(self) -> None:
        """Fail before any work where the folder is read-only."""
        check_writable(self.root)
