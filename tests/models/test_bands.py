# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Stems for other band sets than RGB."""

import pytest
import torch
from torch import Tensor

from torchgeo_cmid.models import adapt_bands
from torchgeo_cmid.models.bands import adapt_stem


@pytest.fixture
def rgb() -> Tensor:
    """Filters of RGB, (8, 3, 7, 7)."""
    return torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ('bands', 'positions'),
    [(4, (0, 1, 2)), (10, (2, 1, 0)), (12, (3, 2, 1)), (13, (3, 2, 1))],
)
def test_known_band_sets(rgb: Tensor, bands: int, positions: tuple[int, ...]) -> None:
    """Red, green and blue keep their filters, the others get their mean."""
    stem = adapt_stem(rgb, bands, 'weights')
    for own, position in enumerate(positions):
        torch.testing.assert_close(stem[:, position], rgb[:, own] * 3 / bands)
    for other in set(range(bands)) - set(positions):
        torch.testing.assert_close(stem[:, other], rgb.mean(dim=1) * 3 / bands)


@pytest.mark.parametrize('bands', [4, 10, 12, 13])
def test_activations_keep_their_size(rgb: Tensor, bands: int) -> None:
    """A grey image, the same in all bands, gives the same activations."""
    grey = torch.rand(2, 1, 32, 32)
    expected = torch.conv2d(grey.expand(-1, 3, -1, -1), rgb)
    stem = adapt_stem(rgb, bands, 'weights')
    actual = torch.conv2d(grey.expand(-1, bands, -1, -1), stem)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_same_bands(rgb: Tensor) -> None:
    assert adapt_stem(rgb, 3, 'weights') is rgb


@pytest.mark.parametrize('bands', [6, 8, 20, 24, 26])
def test_two_dates(rgb: Tensor, bands: int) -> None:
    """Both dates get the filters, halved: twice the same image gives one's map."""
    stem = adapt_stem(rgb, bands, 'weights', two_dates=True)
    date = adapt_stem(rgb, bands // 2, 'weights')
    torch.testing.assert_close(stem, torch.cat([date, date], dim=1) / 2)


def test_two_dates_of_own_bands() -> None:
    own = torch.randn(8, 6, 7, 7)
    stem = adapt_stem(own, 12, 'weights', two_dates=True)
    torch.testing.assert_close(stem, torch.cat([own, own], dim=1) / 2)


@pytest.mark.parametrize(
    ('bands', 'two_dates'), [(6, False), (5, True), (7, False), (2, True), (14, True)]
)
def test_unknown_band_sets(rgb: Tensor, bands: int, two_dates: bool) -> None:
    with pytest.raises(ValueError, match=rf'in_channels is {bands}.*adapt_bands\('):
        adapt_stem(rgb, bands, 'weights', two_dates)


def test_what_was_done_is_logged(rgb: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    adapt_stem(rgb, 26, "'cmid_resnet50'", two_dates=True)
    assert "'cmid_resnet50': stem for 26 bands taken as two dates of 13" in caplog.text
    assert 'stem for 13 bands made of 3' in caplog.text


@pytest.mark.parametrize('stem', ['conv1.weight', 'patch_embed.proj.weight'])
@pytest.mark.parametrize(
    'names', [('blue', 'green', 'red'), ('B', 'G', 'R'), ('B02', 'B03', 'B04')]
)
def test_adapt_bands(rgb: Tensor, stem: str, names: tuple[str, ...]) -> None:
    """Landsat's six bands, by any of the names."""
    bands = (*names, 'nir', 'swir1', 'swir2')
    other = torch.zeros(1)
    state = adapt_bands({stem: rgb, 'other': other}, bands)
    assert state['other'] is other
    torch.testing.assert_close(state[stem][:, :3], rgb.flip(1) / 2)
    torch.testing.assert_close(state[stem][:, 5], rgb.mean(dim=1) / 2)


@pytest.mark.parametrize('bands', [('red', 'green'), ('red', 'R', 'green', 'blue')])
def test_adapt_bands_needs_rgb(rgb: Tensor, bands: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"must hold one band named '(blue|red)'"):
        adapt_bands({'conv1.weight': rgb}, bands)


def test_adapt_bands_needs_a_stem_for_rgb() -> None:
    with pytest.raises(ValueError, match='no stem for RGB'):
        adapt_bands({'conv1.weight': torch.zeros(8, 6, 7, 7)}, ('R', 'G', 'B'))
