# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A data module for the Landsat 7 scene that the package ships."""

from ..datasets import Olinda
from .raster_folder import RasterFolderDataModule


class OlindaDataModule(RasterFolderDataModule):
    """Patches of :class:`~torchgeo_cmid.datasets.Olinda`, for a first try."""

    def __init__(
        self,
        paths: list[str] | str = Olinda.path,
        bands: list[int | str] | None = None,
        patch_size: int = 96,
        length: int | None = 256,
        batch_size: int = 16,
        num_workers: int = 0,
        val_split: float = 0.2,
        split_seed: int = 0,
    ) -> None:
        """Initialize a new OlindaDataModule instance.

        Args:
            paths: The file (defaults to the shipped one).
            bands: Bands to read: 1 to 6 for B1, B2, B3, B4, B5 and B7 (defaults to
                all).
            patch_size: Height and width of a patch in pixels.
            length: Training patches per epoch, of all processes together.
            batch_size: Size of each mini-batch.
            num_workers: Number of workers for parallel data loading.
            val_split: Share of the area for validation, at least 0 and less than 1.
            split_seed: Chooses which ground is for validation.
        """
        super().__init__(
            paths=paths,
            bands=bands,
            patch_size=patch_size,
            length=length,
            batch_size=batch_size,
            num_workers=num_workers,
            val_split=val_split,
            split_seed=split_seed,
        )
