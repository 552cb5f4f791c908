"""Mixed precision by name, one table for training and sampling."""

from __future__ import annotations

import torch

from medical_diffusion.errors import UserError

AMP_DTYPES: dict[str, torch.dtype | None] = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(name: str) -> torch.dtype | None:
    """The type that autocast computes in; None for full precision.

    Raises:
        UserError: unknown name.
    """
    if name not in AMP_DTYPES:
        raise UserError(f"amp must be one of {', '.join(AMP_DTYPES)}", name)
    return AMP_DTYPES[name]


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast on ``device`` in ``dtype``, or nothing where that is None."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def has_bfloat16_units(device: torch.device | str) -> bool:
    """Whether ``device`` is a processor with matrix units for bfloat16 (AMX), which multiply several times faster."""
    if torch.device(device).type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # the oldest PyTorch has none
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
