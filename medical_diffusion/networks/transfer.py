"""Pre-trained weights into a Swin UNETR, with a report of every tensor: nothing is left out in silence.

Accepted are this project's ``model.pt``, a state dict of MONAI's SwinUNETR, and the self-supervised formats that MONAI
publishes: ``{"state_dict": {"module.patch_embed...": ...}}`` with ``fc1`` and ``fc2`` for ``linear1`` and ``linear2``
(Tang et al. 2022, as ``SwinUNETR.load_from`` reads it), and ``encoder.layers1.0.0...`` (Valanarasu et al. 2023, as
``filter_swinunetr`` reads it). Names of wrappers are taken off, then each tensor is

    matched     the same name and shape,
    reshaped    the kernel of a first convolution for another number of input channels: from one channel it is repeated
                and divided by their number, to one channel it is summed, which keeps the response to grey images,
    new head    the output layer of another number of classes, which starts afresh,
    missing     in the network, but not in the file,
    mismatched  of another shape, and
    unexpected  in the file, but not in the network.

The share that decides is

    parameters matched or reshaped / parameters that network and file name together,

without the output layer, and without what the file holds of other modules (heads of its own pretext tasks). For a file
of an encoder alone only the encoder is counted, and the report says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.files import load_tensors

MINIMUM_SHARE = 0.9
ENCODER = "swinViT."
HEAD = "out."
WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "swin_unetr.")
CONTAINERS = ("model", "state_dict", "model_state_dict", "network", "net")
FIRST_CONVOLUTIONS = (
    "swinViT.patch_embed.proj.weight",
    "encoder1.layer.conv1.conv.weight",
    "encoder1.layer.conv3.conv.weight",
)
SHOWN = 4


@dataclass(frozen=True)
class TransferReport:
    """What became of every tensor of the network and of the file; names are those of the network.

    Args:
        source: where the weights came from.
        part: ``network``, or ``encoder`` where the file holds no more.
        share: of the parameters, in [0, 1]; see the module's text.
        matched, reshaped: tensors that the network took.
        new_head: tensors of the output layer that start afresh.
        missing, unexpected: tensors that only the network, or only the file has.
        mismatched: name, shape in the file, shape in the network.
    """

    source: str
    part: str
    share: float
    matched: tuple[str, ...]
    reshaped: tuple[str, ...]
    new_head: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    unexpected: tuple[str, ...]

    @property
    def transferred(self) -> frozenset[str]:
        """Names of the tensors that came from the file."""
        return frozenset(self.matched) | frozenset(self.reshaped)

    def summary(self) -> list[str]:
        """Lines for a log."""
        whole = "the encoder's" if self.part == "encoder" else "the network's"
        lines = [f"{100 * self.share:.1f} % of {whole} parameters come from {self.source}"]
        if self.part == "encoder":
            lines.append("the file holds an encoder alone: the decoder starts afresh")
        shapes = tuple(f"{name} {file} for {own}" for name, file, own in self.mismatched)
        for title, names in (
            ("matched", self.matched),
            ("reshaped to the input channels", self.reshaped),
            ("output layer, starts afresh", self.new_head),
            ("missing in the file", self.missing),
            ("of another shape", shapes),
            ("unexpected in the file", self.unexpected),
        ):
            if names:
                few = "" if title == "matched" else f": {_few(names)}"
                lines.append(f"{len(names)} tensors {title}{few}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def transfer_weights(
    network: nn.Module,
    source: str | Path | Mapping[str, Any],
    minimum_share: float = MINIMUM_SHARE,
    new_head: bool = False,
) -> TransferReport:
    """Load what fits of ``source`` into ``network``.

    Args:
        network: a Swin UNETR, ours or MONAI's; left as it is where the weights are refused.
        source: a file, read without running code from it, or what it holds.
        minimum_share: smallest share of the parameters that must come from the file, in [0, 1].
        new_head: let the output layer start afresh even where it would fit: that of a pretext task has another meaning.

    Raises:
        UserError: missing or damaged file, one without weights, input channels that cannot be reshaped, values that are
            not finite, or a share below ``minimum_share``.
    """
    if not 0.0 <= minimum_share <= 1.0:
        raise UserError("minimum_share must lie in [0, 1]", minimum_share)
    name = str(source) if isinstance(source, str | Path) else "the given weights"
    content = load_tensors(source) if isinstance(source, str | Path) else source
    found = {canonical_name(key): value for key, value in _state_dict(content, name).items()}
    own = network.state_dict()
    taken, report = _compare(own, found, name, new_head)
    if report.share < minimum_share or not report.transferred:
        raise UserError(
            f"at least {100 * minimum_share:g} % of the parameters must come from the pre-trained weights",
            "; ".join(report.summary()),
            _remedy(own, found),
        )
    for key, value in taken.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                "pre-trained weights must be finite", f"{key} in {name}", "Train again, or take another file"
            )
    network.load_state_dict({**own, **taken}, strict=True)
    return report


def canonical_name(key: str) -> str:
    """The name that MONAI's SwinUNETR has for a tensor of one of the known formats."""
    while wrapper := next((w for w in WRAPPERS if key.startswith(w)), None):
        key = key.removeprefix(wrapper)
    key = re.sub(r"^encoder\.(layers[1-4]\.0)\.0\.", rf"{ENCODER}\1.", key)
    key = re.sub(r"^encoder\.(?=patch_embed\.)", ENCODER, key)
    key = re.sub(r"^(?=patch_embed\.|layers[1-4]c?\.)", ENCODER, key)
    return re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", key)


def _state_dict(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            content = content[container]
            break
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            "pre-trained weights must be a dictionary of tensors by name",
            f"{name} with {_few(tuple(map(str, content)))}",
            "Pass the model.pt of a pre-training, or a state dict of MONAI's SwinUNETR",
        )
    return tensors


def _compare(
    own: dict[str, Tensor], found: dict[str, Tensor], source: str, new_head: bool
) -> tuple[dict[str, Tensor], TransferReport]:
    """The tensors to load, and the report."""
    taken: dict[str, Tensor] = {}
    lists: dict[str, list[Any]] = {
        key: [] for key in ("matched", "reshaped", "new_head", "missing", "mismatched", "unexpected")
    }
    for key, value in own.items():
        given = found.get(key)
        is_head = key.startswith(HEAD)
        if is_head and (new_head or given is None or given.shape != value.shape):
            lists["new_head"].append(key)
        elif given is None:
            lists["missing"].append(key)
        elif given.shape == value.shape:
            taken[key] = given.to(value.dtype)
            lists["matched"].append(key)
        elif key in FIRST_CONVOLUTIONS and _other_channels(given, value):
            taken[key] = _reshaped(given, value, source)
            lists["reshaped"].append(key)
        else:
            lists["mismatched"].append((key, tuple(given.shape), tuple(value.shape)))
    lists["unexpected"] = [key for key in found if key not in own]
    modules = {key.split(".")[0] for key in own}
    part = ENCODER if all(key.startswith(ENCODER) for key in found if key.split(".")[0] in modules) else ""
    counted = sum(_parameters(v) for k, v in own.items() if k.startswith(part) and not k.startswith(HEAD))
    counted += sum(_parameters(found[k]) for k in lists["unexpected"] if k.split(".")[0] in modules)
    loaded = sum(_parameters(v) for k, v in taken.items() if not k.startswith(HEAD))
    report = TransferReport(
        source=source,
        part="encoder" if part and taken else "network",
        share=loaded / counted if counted else 0.0,
        **{key: tuple(values) for key, values in lists.items()},
    )
    return taken, report


def _parameters(tensor: Tensor) -> int:
    """Elements that were learned: indices of attention windows are whole numbers."""
    return tensor.numel() if tensor.is_floating_point() else 0


def _other_channels(given: Tensor, value: Tensor) -> bool:
    """Whether two kernels (out, in, *size) differ in their input channels alone."""
    return given.ndim == value.ndim and given.shape[0] == value.shape[0] and given.shape[2:] == value.shape[2:]


def _reshaped(given: Tensor, value: Tensor, source: str) -> Tensor:
    before, after = given.shape[1], value.shape[1]
    if before == 1:
        return (given / after).expand_as(value).to(value.dtype).clone()
    if after == 1:
        return given.sum(dim=1, keepdim=True).to(value.dtype)
    raise UserError(
        "weights of one input channel fit any number of channels, and those of several fit one",
        f"{before} channels in {source}, {after} in the network",
        f"Use volumes of {before} or of 1 channel, or other weights",
    )


def _remedy(own: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """What most likely differs."""
    key = FIRST_CONVOLUTIONS[0]
    if key in found and key in own:
        given, value = found[key], own[key]
        if given.ndim != value.ndim:
            return f"The file is of a network for {given.ndim - 2}D, this one is for {value.ndim - 2}D"
        if given.shape[0] != value.shape[0]:
            width = given.shape[0]
            return f"The file has feature_size {width}, this network {value.shape[0]}: use --feature_size {width}"
        return "The file is of another depth or version of Swin UNETR: use the settings that it was trained with"
    return "Pass weights of a Swin UNETR; the names in this file are those of another network, or have another prefix"


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
