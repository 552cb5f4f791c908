"""Preprocessed volumes in files that are whole or absent."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any

from monai.data import PersistentDataset
from monai.utils import convert_to_tensor

from medical_diffusion.errors import UserError
from medical_diffusion.files import load_tensors, save_tensors

logger = logging.getLogger(__name__)


class SafePersistentDataset(PersistentDataset):
    """MONAI's dataset, for items that are dictionaries of tensors and plain values.

    A file that can not be read, such as one of a killed run, is written again; MONAI does so for some of these alone.
    Files are written beside their place and renamed: MONAI moves them from the folder of temporary files, which is a
    copy where that is another disk.

    Args:
        As of MONAI's ``PersistentDataset``.

    Raises:
        UserError: when an item is read: its file can not be written.
    """

    def _cachecheck(self, item_transformed: Any) -> Any:
        if self.cache_dir is None:
            return super()._cachecheck(item_transformed)
        name = self.hash_func(item_transformed).decode("utf-8") + self.transform_hash
        path = self.cache_dir / f"{name}.pt"
        if path.is_file():
            try:
                return load_tensors(path)
            except UserError:
                logger.warning("The cache file %s is damaged and is written again.", path)
        item = self._pre_transform(deepcopy(item_transformed))
        save_tensors(path, convert_to_tensor(item, convert_numeric=False, track_meta=self.track_meta))
        return item
