# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The shipped scene is there, can be read as any TorchGeo dataset, and be plotted."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
from torchgeo.datasets import RGBBandsMissingError

from torchgeo_cmid.datasets import Olinda


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close('all')


def test_reads_the_shipped_file() -> None:
    dataset = Olinda()
    assert len(dataset) == 1
    assert dataset.res == pytest.approx((28.5, 28.5))
    sample = dataset[dataset.bounds]
    assert sample['image'].shape == (6, 352, 349)
    assert sample['image'].std(dim=(1, 2)).min() > 5


def test_plots_natural_colours() -> None:
    dataset = Olinda(bands=('B1', 'B2', 'B3'))
    sample = dataset[dataset.bounds]
    figure = dataset.plot(sample, suptitle='Olinda')
    assert figure.get_suptitle() == 'Olinda'
    assert figure.axes[0].get_title() == 'Image'
    assert not dataset.plot(sample, show_titles=False).axes[0].get_title()


def test_refuses_to_plot_without_red_green_and_blue() -> None:
    dataset = Olinda(bands=('B4', 'B5'))
    with pytest.raises(RGBBandsMissingError):
        dataset.plot(dataset[dataset.bounds])


def test_unknown_band() -> None:
    with pytest.raises(AssertionError):
        Olinda(bands=('B8',))
