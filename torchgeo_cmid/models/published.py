# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The published weights as TorchGeo weights, and how they are fetched."""

import hashlib
import http.client
import os
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2 as T
from torch import nn
from torchvision.models._api import Weights, WeightsEnum

from .architectures import ARCHITECTURES, MEAN, RESNET50, STD, SWIN_B, Architecture
from .loading import BackboneState, read_backbone
from .normalization import PUBLISHED
from .official import convert_official_backbone, find_architecture

_transforms = nn.Sequential(T.Normalize(mean=list(MEAN), std=list(STD)))


def _weights(architecture: Architecture, name: str) -> Weights:
    """Describe one published file."""
    file_id, dataset, epochs = architecture.files[name]
    return Weights(
        url=f'https://box.nju.edu.cn/f/{file_id}/?dl=1',
        transforms=_transforms,
        meta={
            'dataset': dataset,
            'in_chans': 3,
            'bands': PUBLISHED.bands,
            'model': architecture.name,
            'publication': 'https://arxiv.org/abs/2304.09670',
            'repo': 'https://github.com/NJU-LHRS/official-CMID',
            'ssl_method': 'cmid',
            'epochs': epochs,
            'license': 'none stated: the files are fetched from where their authors '
            'publish them, and are not redistributed',
        },
    )


class PublishedWeights(WeightsEnum):  # type: ignore[misc]
    """Weights that the authors of CMID have published.

    Source: `CMID <https://arxiv.org/abs/2304.09670>`__, section IV.
    """

    def __str__(self) -> str:
        """The name that :func:`torchgeo.models.get_weight` knows the weights by."""
        model = str(self.meta['model'])
        return model if self.name == 'MILLIONAID' else f'{model}_{self.name.lower()}'

    @property
    def architecture(self) -> Architecture:
        """The architecture that the weights are of."""
        return ARCHITECTURES[self.meta['model']]

    @property
    def file_name(self) -> str:
        """Name of the file in torch.hub's cache; the published links have none."""
        return f'{self.meta["model"]}_{self.name.lower()}.pth'

    def get_state_dict(
        self,
        model_dir: str | os.PathLike[str] | None = None,
        map_location: Any = None,
        progress: bool = True,
        check_hash: bool = True,
        file_name: str | None = None,
        weights_only: bool = True,
    ) -> BackboneState:
        """Get the tensors by timm's names; the file is fetched once.

        Arguments are those of :func:`torch.hub.load_state_dict_from_url`. The SHA-256
        of the file is written beside it when it is first used, for the links tell none.

        Args:
            model_dir: Folder of the file. None: ``checkpoints`` of torch.hub's folder.
            map_location: Device of the tensors.
            progress: Show a progress bar while the file is fetched.
            check_hash: Refuse a file that has changed since it was first used.
            file_name: Name of the file. None: *file_name* of this weight.
            weights_only: Refuse a file that pickles anything but tensors.

        Returns:
            The backbone's state dict, which knows the pixels it was trained on.

        Raises:
            ConnectionError: If the file can not be fetched.
            ValueError: If the file has changed, is unsafe, no file of weights, or holds
                another backbone.
        """
        folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
        path = folder / (file_name or self.file_name)
        if path.exists():
            if check_hash:
                _check_hash(path)
            state = self._read(path, weights_only)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f'{path.stem}.{os.getpid()}.part')
            try:
                self._fetch(part, path, progress)
                state = self._read(part, weights_only)  # before it gets its name
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            _check_hash(path)
        if map_location is not None:
            for name, tensor in state.items():
                state[name] = tensor.to(map_location)
        return state

    def _fetch(self, part: Path, path: Path, progress: bool) -> None:
        """Fetch the published file."""
        try:
            torch.hub.download_url_to_file(self.url, str(part), progress=progress)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"the weights '{self}' could not be fetched from {self.url} ({error}). "
                f"Fetch the file by hand and save it as '{path}', or pass its path as "
                'weights'
            ) from error

    def _read(self, path: Path, weights_only: bool) -> BackboneState:
        """Read the file, and check that it holds this backbone."""
        state = read_backbone(path, weights_only=weights_only)
        model = self.meta['model']
        found = find_architecture(state)
        if found is None or found.name != model:
            raise ValueError(f"'{path}' holds another backbone than {model}")
        if found.official_stem == found.stem:  # read_backbone has not converted it
            state = BackboneState(convert_official_backbone(state))
        state.pixels = PUBLISHED
        return state


def _weights_class(architecture: Architecture) -> type[PublishedWeights]:
    """Make the class of the weights of an architecture."""
    members = {name: _weights(architecture, name) for name in architecture.files}
    made: type[PublishedWeights] = PublishedWeights(
        architecture.weights_class, members, module=__name__
    )
    made.__doc__ = (
        f"{architecture.name} weights, for timm's *{architecture.timm_name}* and for "
        f'*{architecture.name}*.'
    )
    return made


#: The weights of each architecture by its name.
WEIGHTS = {name: _weights_class(each) for name, each in ARCHITECTURES.items()}
CMIDResNet50_Weights = WEIGHTS[RESNET50.name]
CMIDSwinB_Weights = WEIGHTS[SWIN_B.name]


def _check_hash(path: Path) -> None:
    """Write down the SHA-256 of a file, or compare with what was written down."""
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    record = path.with_name(f'{path.name}.sha256')
    if not record.exists():
        record.write_text(f'{digest}  {path.name}\n')
    elif record.read_text().split()[:1] != [digest]:
        raise ValueError(
            f"'{path}' has changed since it was first used: its SHA-256 is {digest}, "
            f"'{record}' says otherwise. Remove both to fetch the file anew"
        )
