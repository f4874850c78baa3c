# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The pixels of a backbone, and how images are brought to them."""

import copy
import io
import json
from typing import Any

import pytest
import timm
import torch
import torchgeo.models  # noqa: F401 (registers cmid_resnet50)
import torchvision
from torch import Tensor, nn

from torchgeo_cmid.datamodules.applied import Applied
from torchgeo_cmid.models import adapt_bands
from torchgeo_cmid.models.architectures import MEAN, STD
from torchgeo_cmid.models.loading import BackboneState
from torchgeo_cmid.models.normalization import (
    PUBLISHED,
    InputNormalization,
    Pixels,
    attach,
    find_normalizations,
    find_pixels,
    from_standardised,
    leave_images,
)

OWN = Pixels((100.0, 50.0), (20.0, 10.0), 255.0, ('red', 'green'))


def normalise(hook: InputNormalization, x: Tensor) -> Tensor:
    (output,) = hook(nn.Identity(), (x,))
    assert isinstance(output, Tensor)
    return output


def published(**kwargs: Any) -> InputNormalization:
    return InputNormalization('cmid_swin_b', 3, PUBLISHED, **kwargs)


class TestPixels:
    def test_plain_values(self) -> None:
        state = json.loads(json.dumps(OWN.to_state()))
        assert Pixels.from_state(state) == OWN
        assert Pixels.from_state(PUBLISHED.to_state()) == PUBLISHED

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (((1.0,), (1.0, 2.0)), 'one value for each band'),
            (((1.0,), (1.0,), None, ('a', 'b')), 'one value for each band'),
            (((1.0,), (0.0,)), 'no std 0'),
            (((float('nan'),), (1.0,)), 'must be finite'),
            (((1.0,), (1.0,), -1.0), 'unit=-1.0 must be a number above 0'),
            (((1.0,), (1.0,), 'DN'), 'unit=DN must be a number above 0'),
        ],
    )
    def test_refused(self, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Pixels(*arguments)

    @pytest.mark.parametrize(
        ('bands', 'positions'),
        [(4, [0, 1, 2]), (10, [2, 1, 0]), (13, [3, 2, 1]), (6, [0, 1, 2])],
    )
    def test_rgb_statistics_follow_the_bands(
        self, bands: int, positions: list[int]
    ) -> None:
        mean, std = (x / 255 for x in PUBLISHED.spread(bands))
        assert mean.shape == (bands,)
        assert mean[positions].tolist() == pytest.approx(MEAN)
        assert std[positions].tolist() == pytest.approx(STD)
        if bands == 6:  # two dates
            assert mean[3:].tolist() == pytest.approx(MEAN)
        else:
            others = list(set(range(bands)) - set(positions))
            assert mean[others].tolist() == pytest.approx([sum(MEAN) / 3] * len(others))

    def test_two_dates(self) -> None:
        mean, std = OWN.spread(4)
        assert mean.tolist() == [100, 50, 100, 50]
        assert std.tolist() == [20, 10, 20, 10]

    def test_other_bands_are_not_made_up(self) -> None:
        """Regression: the first statistics went to red, green and blue, or a third."""
        for bands in (3, 12, 14):
            with pytest.raises(ValueError, match='pixels of 13 bands, but the model'):
                Pixels((1.0,) * 13, (1.0,) * 13).spread(bands)

    def test_found_in_files(self) -> None:
        assert find_pixels({'pixels': OWN.to_state()}, {}) == OWN
        metadata = {name: json.dumps(v) for name, v in OWN.to_state().items()}
        assert find_pixels({}, metadata) == OWN
        # before version 0.2: the statistics of our data module, of unknown unit
        old = {'RasterFolderDataModule': {'normalization': OWN.to_state()}}
        del old['RasterFolderDataModule']['normalization']['unit']
        found = find_pixels(old, {})
        assert found is not None
        assert (found.mean, found.std, found.unit) == (OWN.mean, OWN.std, None)
        assert find_pixels({'conv1.weight': torch.zeros(1)}, {}) is None

    def test_state_of_a_backbone_is_saved_as_tensors_alone(self) -> None:
        """What is adapted to other bands is saved, and read by a safe load."""
        state = BackboneState({'conv1.weight': torch.rand(4, 3, 7, 7)})
        state.pixels = PUBLISHED
        for each in (state, adapt_bands(state, ['R', 'G', 'B', 'N'])):
            buffer = io.BytesIO()
            torch.save(each, buffer)
            buffer.seek(0)
            assert torch.load(buffer, weights_only=True).keys() == state.keys()


class TestFromStandardised:
    """(raw - mean) / std of a data module becomes that of the weights."""

    def check(self, applied: Applied, channels: int = 2) -> Any:
        torch.manual_seed(0)
        raw = 255 * torch.rand(2, channels, 4, 4, dtype=torch.float64)
        mean, std = (
            torch.tensor(x, dtype=torch.float64).repeat(channels // len(x))[
                :, None, None
            ]
            for x in (applied.mean, applied.std)
        )
        own_mean, own_std = (x[:, None, None] for x in OWN.spread(channels))
        transform = from_standardised(OWN, channels, applied)
        hook = InputNormalization('model', channels, OWN)
        hook.decide(transform)
        image = (raw - mean) / std
        expected = (raw - own_mean) / own_std if transform.fulfils else image
        torch.testing.assert_close(
            normalise(hook, image), expected, rtol=1e-5, atol=1e-5
        )
        return transform

    @pytest.mark.parametrize(
        'applied',
        [
            Applied((0.0,), (255.0,), 255.0, 'A'),
            Applied((90.0, 60.0), (30.0, 12.0), 255.0, 'A'),
            Applied((0.0,), (1.0,), 255.0, 'A'),
        ],
    )
    @pytest.mark.parametrize('channels', [2, 4])
    def test_same_unit(self, applied: Applied, channels: int) -> None:
        transform = self.check(applied, channels)
        assert transform.fulfils
        assert 'what A has done is undone' in transform.reason

    def test_same_statistics(self) -> None:
        transform = self.check(Applied(OWN.mean, OWN.std, None, 'A'))
        assert transform.fulfils
        assert transform.is_identity

    @pytest.mark.parametrize(
        ('unit', 'message'),
        [(10_000.0, 'of unit 10000, the weights of 255'), (None, 'not known')],
    )
    def test_another_unit(self, unit: float | None, message: str) -> None:
        transform = self.check(Applied((1000.0, 900.0), (300.0, 200.0), unit, 'A'))
        assert transform.is_identity
        assert not transform.fulfils
        assert message in transform.reason

    def test_published_weights_leave_standardised_images(self) -> None:
        applied = Applied((93.0, 97.0, 87.0), (51.0, 47.0, 47.0), 255.0, 'RESISC45')
        transform = from_standardised(PUBLISHED, 3, applied)
        assert transform.is_identity
        assert 'RESISC45 has standardised the images already' in transform.reason
        assert not from_standardised(
            PUBLISHED, 3, Applied((0.0,), (255.0,), 255.0, 'UCMerced')
        ).is_identity

    def test_bands_in_another_order(self) -> None:
        applied = Applied(OWN.mean, OWN.std, 255.0, 'A', ('green', 'red'))
        with pytest.raises(ValueError, match=r"A gives .*'green', 'red'.* trained on"):
            from_standardised(OWN, 2, applied)

    def test_wrong_number_of_bands(self) -> None:
        with pytest.raises(ValueError, match='A gives 3 bands: in_channels=2'):
            self.check(Applied((1.0, 2.0, 3.0), (1.0, 1.0, 1.0), 255.0, 'A'))


class TestInputNormalization:
    def test_values_in_0_to_1(self) -> None:
        x = torch.rand(2, 3, 8, 8)
        expected = torchvision.transforms.functional.normalize(x, MEAN, STD)
        for arguments in ({}, {'normalize': True}):
            torch.testing.assert_close(normalise(published(**arguments), x), expected)
        for dtype in (torch.uint8, torch.float16, torch.float64):
            raw = (255 * x).to(dtype)
            hook = published(unit=255)
            torch.testing.assert_close(
                normalise(hook, raw).float(),
                torchvision.transforms.functional.normalize(
                    raw.float() / 255, MEAN, STD
                ),
                rtol=1e-2 if dtype == torch.float16 else 1e-5,
                atol=1e-2 if dtype == torch.float16 else 1e-5,
            )

    def test_off(self) -> None:
        x = torch.randn(2, 3, 8, 8)
        assert normalise(published(normalize=False), x) is x

    def test_no_batch_decides(self) -> None:
        """Regression: the first batch did, for ever: a bright one, or zeros."""
        hook = published(normalize=True)
        bright = 1 + torch.rand(1, 3, 8, 8).clamp(max=0.9)
        expected = normalise(published(), bright)
        for first in (torch.zeros(1, 3, 8, 8), torch.rand(1, 3, 8, 8), bright):
            normalise(hook, first)
            torch.testing.assert_close(normalise(hook, bright), expected)
        hook = published()
        hook.decide(leave_images(3, 'standardised'))
        for first in (bright, torch.randn(1, 3, 8, 8)):
            assert normalise(hook, first) is first

    def test_an_argument_overrules_a_run(self) -> None:
        x = torch.rand(1, 3, 8, 8)
        hook = published(normalize=True)
        hook.decide(leave_images(3, 'standardised'))
        assert not torch.equal(normalise(hook, x), x)
        hook = published(normalize=False)
        hook.decide(published().transform)
        assert normalise(hook, x) is x

    def test_implausible_values(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(ValueError, match=r'swin_b takes .* 1 stands .*unit=255'):
            normalise(published(), 255 * torch.rand(1, 3, 8, 8))
        with pytest.raises(ValueError, match='unit=10000 for reflectance'):
            normalise(published(unit=255), 3000 * torch.rand(1, 3, 8, 8))
        few = torch.rand(1, 3, 100, 100)
        few[:, :, 0, 0] = 3
        hook = published()
        for _ in range(2):
            normalise(hook, few)
        assert len(caplog.records) == 2
        assert 'far from that' in caplog.text
        torch.testing.assert_close(
            normalise(hook, few), normalise(published(), few)
        )  # the check changes nothing
        for _ in range(2):
            normalise(hook, few)
        normalise(hook, 255 * few)  # the fifth batch and later are not looked at

    def test_unknown_unit_takes_raw_numbers(self) -> None:
        pixels = Pixels((5000.0,), (2000.0,))
        x = 10_000 * torch.rand(1, 1, 8, 8)
        hook = InputNormalization('model', 1, pixels)
        torch.testing.assert_close(normalise(hook, x), (x - 5000) / 2000)
        with pytest.raises(ValueError, match='unit of the weights is not known'):
            InputNormalization('model', 1, pixels, unit=255)

    def test_two_dates_in_one_image(self) -> None:
        x = torch.rand(1, 6, 8, 8)
        once = normalise(published(), x[:, :3]), normalise(published(), x[:, 3:])
        torch.testing.assert_close(normalise(published(), x), torch.cat(once, dim=1))

    def test_copies_keep_it(self) -> None:
        model = timm.create_model('cmid_resnet50', num_classes=0, unit=255).eval()
        twin = copy.deepcopy(model)
        (hook,) = find_normalizations(twin).values()
        assert hook is twin.input_normalization
        hook.decide(leave_images(3, 'as they are'))
        x = 255 * torch.rand(1, 3, 32, 32)
        assert not torch.allclose(model(x), twin(x))

    def test_attached_once(self) -> None:
        model = nn.Sequential(nn.Identity())
        for _ in range(2):
            attach(model, '0', published())
        x = torch.rand(1, 3, 4, 4)
        torch.testing.assert_close(model(x), normalise(published(), x))

    def test_compiled(self) -> None:
        """No graph break, and the same numbers."""
        model = nn.Sequential(nn.Identity())
        attach(model, '0', published())
        compiled = torch.compile(copy.deepcopy(model), backend='eager', fullgraph=True)
        x = torch.rand(2, 3, 8, 8)
        torch.testing.assert_close(compiled(x), model(x))
