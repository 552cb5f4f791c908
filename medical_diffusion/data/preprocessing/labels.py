"""Label maps as the network's channels, and where in a volume the classes lie."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform


class EncodeLabelsd(MapTransform):
    """Values of a label map to channel numbers: ``values[n]`` becomes n + 1, all other values 0, the background.

    Args:
        values: of the classes, in the order of the network's channels 1, 2, ...
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = tuple(int(value) for value in values)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        """Encode ``data[key]`` (1, H, W, D) as uint8; a ``MetaTensor`` stays one."""
        item = dict(data)
        for key in self.key_iterator(item):
            labels = item[key]
            whole = torch.round(labels)
            encoded = torch.zeros_like(labels, dtype=torch.uint8)
            for channel, value in enumerate(self.values, start=1):
                encoded[whole == value] = channel
            item[key] = encoded
        return item


class SampleForegroundd(MapTransform):
    """Add ``foreground``: positions (N, 4) of voxels of each class as (channel, h, w, d), at most ``count`` a class.

    They are spread evenly over the class, so that a crop around one of them may lie anywhere in it.

    Args:
        keys: of the encoded label map.
    """

    def __init__(self, keys: KeysCollection, count: int = 512) -> None:
        super().__init__(keys)
        self.count = count

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            labels = item[key]
            plain = (labels.as_tensor() if isinstance(labels, MetaTensor) else labels)[0]
            found = []
            for channel in torch.unique(plain).tolist():
                if channel == 0:
                    continue
                places = torch.nonzero(plain == channel)
                chosen = torch.linspace(0, len(places) - 1, min(self.count, len(places))).round().long()
                places = places[chosen]
                found.append(torch.cat([torch.full((len(places), 1), channel), places], dim=1))
            item["foreground"] = torch.cat(found).int() if found else torch.zeros((0, 4), dtype=torch.int32)
        return item
