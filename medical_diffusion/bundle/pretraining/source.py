"""Fresh volumes by seed from a diffusion bundle, drawn while something is trained on them.

The bundle's own ``inference.json`` says how its weights become networks and a sampler, so any bundle of this project
can be a source. Volume n of a run is the sample of seed ``first_seed + n``: the same that inference writes for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor
from torch.utils.data import Dataset

from medical_diffusion.bundle.settings import stored_settings
from medical_diffusion.data import resize_volume
from medical_diffusion.errors import UserError, find_user_error

HELD_OUT_SEED = 1 << 31
"""Seeds of validation start here, beyond those that a run draws."""

INFERENCE = "configs/inference.json"
NEEDED = ("autoencoder_def", "network_def", "latent_sampler", "weights")


class DiffusionSource:
    """Volumes by seed from the diffusion bundle at ``bundle``.

    Args:
        bundle: its folder.
        run_dir: where its weights lie; the bundle's own folder by default.
        device: where to draw.
        sampler, num_steps: of the reverse diffusion.

    Raises:
        UserError: no diffusion bundle is there, or it has no weights.
    """

    def __init__(
        self,
        bundle: str | Path,
        run_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        sampler: str = "dpmpp",
        num_steps: int | None = None,
    ) -> None:
        self.bundle, self.run_dir = Path(bundle), Path(run_dir or bundle)
        self.device = torch.device(device)
        self.options = {"sampler": sampler, "num_steps": num_steps}
        self.settings = source_settings(bundle, run_dir)

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Volumes (B, C, H, W, D) in [-1, 1] of ``seeds``, on the CPU."""
        state = torch.random.get_rng_state()
        volumes = self._parts["latent_sampler"](list(seeds), self._parts["network_def"]).cpu()
        torch.random.set_rng_state(state)
        return volumes

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of its weights."""
        return dict(self._parts["weights"].hashes)

    @cached_property
    def _parts(self) -> dict[str, Any]:
        options = {name: value for name, value in self.options.items() if value is not None}
        try:
            workflow = ConfigWorkflow(
                config_file=str(self.bundle / INFERENCE),
                workflow_type="infer",
                logging_file=False,
                bundle_root=str(self.bundle),
                run_dir=str(self.run_dir),
                device=str(self.device),
                **options,
            )
            parts = {name: workflow.parser.get_parsed_content(name) for name in NEEDED}
            parts["weights"].load("autoencoder", parts["autoencoder_def"])
            parts["weights"].load("model", parts["network_def"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise find_user_error(error) or _not_a_source(self.bundle) from error
        for name in ("autoencoder_def", "network_def"):
            parts[name].to(self.device)
        return parts


def source_settings(bundle: str | Path, run_dir: str | Path | None = None) -> dict[str, Any]:
    """What the weights of a diffusion bundle were trained with.

    Raises:
        UserError: no diffusion bundle is there, or it has no weights.
    """
    root = Path(bundle)
    if not (root / INFERENCE).is_file():
        raise _not_a_source(root)
    settings = stored_settings(run_dir or root)
    if "timesteps" not in settings:
        raise UserError(
            "--source_bundle must hold the weights of a trained diffusion model",
            f"{Path(run_dir or root) / 'models'} without them",
            "Train it first, or name its run with --source_run_dir",
        )
    return settings


def _not_a_source(root: Path) -> UserError:
    return UserError(
        "--source_bundle must be the folder of a diffusion bundle",
        f"{root}, which has no {INFERENCE} of one",
        "Pass for example bundles/lidc_ldm; its run elsewhere is --source_run_dir",
    )


class FreshVolumes(Dataset):
    """Batches of samples that are drawn when a step asks for them.

    Args:
        source: draws by seed.
        image_size: voxels (H, W, D); samples of another size are resized.
        first_seed: of the run.
        batch: volumes of one step over all processes.
        repeats: consecutive steps that use the same volumes, each with masks of its own: drawing takes longer than a
            step.
    """

    def __init__(
        self, source: DiffusionSource, image_size: Sequence[int], first_seed: int = 0, batch: int = 1, repeats: int = 1
    ) -> None:
        self.source, self.image_size, self.first_seed = source, tuple(image_size), first_seed
        self.batch, self.repeats = batch, repeats
        self._seeds: list[int] = []
        self._volumes: list[Tensor] = []

    def __len__(self) -> int:
        return self.batch

    def seed_of(self, place: int) -> int:
        """Seed of the volume at a place in the run."""
        step, offset = divmod(place, self.batch)
        return self.first_seed + step // self.repeats * self.batch + offset

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """The items of one step, drawn together; (index, place in the run) of each."""
        seeds = [self.seed_of(place) for _, place in places]
        if seeds != self._seeds:
            self._volumes, self._seeds = draw_resized(self.source, seeds, self.image_size), seeds
        return [{"image": volume} for volume in self._volumes]

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        return self.__getitems__([place])[0]


class HeldOutVolumes(Dataset):
    """``count`` samples of seeds that no training uses, drawn once.

    Args:
        source, image_size: as of :class:`FreshVolumes`.
        count: number of volumes.
    """

    def __init__(self, source: DiffusionSource, image_size: Sequence[int], count: int) -> None:
        self.source, self.image_size, self.count = source, tuple(image_size), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self._volumes[index]}

    @cached_property
    def _volumes(self) -> list[Tensor]:
        seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + self.count)
        return [volume for seed in seeds for volume in draw_resized(self.source, [seed], self.image_size)]


def draw_resized(source: DiffusionSource, seeds: Sequence[int], image_size: tuple[int, ...]) -> list[Tensor]:
    """Samples (C, H, W, D) of ``image_size``.

    Raises:
        UserError: a sample is constant, as those of weights that diverged.
    """
    volumes = [resize_volume(volume, image_size) for volume in source.draw(seeds)]
    for seed, volume in zip(seeds, volumes, strict=True):
        if not bool(volume.max() > volume.min()):
            raise UserError(
                "samples of --source_bundle must vary",
                f"seed {seed} is {float(volume.min()):g} everywhere",
                "Look at the bundle's samples, and train it longer or again",
            )
    return volumes
