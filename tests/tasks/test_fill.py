# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Fill pixels never teach: whatever they hold, nothing that is learnt changes."""

from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tasks.tiny import TINY
from torchgeo_cmid.tasks import CMID, cmid
from torchgeo_cmid.transforms import (
    MultispectralPhotometric,
    Views,
    expand_mask,
    fill_with_valid_mean,
    masked_views,
    views,
)

SMALL = TINY | {'model': 'convnext_atto', 'in_channels': 4, 'num_matches': 3}


def patches_and_valid() -> tuple[Tensor, Tensor]:
    """Four patches: a third fill, in a corner; speckled; all fill; none."""
    torch.manual_seed(1)
    image = torch.randn(4, 4, 80, 80) * 2 + 1
    valid = torch.ones(4, 1, 80, 80, dtype=torch.bool)
    valid[0, :, :48, :48] = False
    valid[1] = torch.rand(1, 80, 80) > 0.1
    valid[2] = False
    return image, valid


class Unaware(nn.Module):
    """A module of a user's that has never heard of fill."""

    def __init__(self, views: Views) -> None:
        """Initialize a new Unaware instance."""
        super().__init__()
        self.views = views

    def forward(self, images: tuple[Tensor, Tensor]) -> Any:
        return self.views(images)


def learn(
    batch: dict[str, Any], knows_fill: bool = True, **kwargs: Any
) -> dict[str, Tensor]:
    """All that one step of training computes."""
    torch.manual_seed(0)
    task = CMID(**(SMALL | kwargs))
    recipe = Views(64, MultispectralPhotometric(4))
    # the recipe for these data, or a module of the user's, which knows of no fill
    task.views.augmentations = recipe if knows_fill else Unaware(recipe)
    drawn = task.views(batch)  # type: ignore[arg-type]
    losses = task.compute_losses(*drawn, teacher_temperature=0.04)
    losses['loss'].backward()
    result = {name: value.detach() for name, value in losses.items()}
    for name, parameter in task.student.named_parameters():
        if parameter.grad is not None:
            result[f'gradient of {name}'] = parameter.grad
    result |= dict(task.contrastive.named_buffers())
    return result | dict(task.distillation.named_buffers())


class TestFillNeverTeaches:
    @pytest.mark.parametrize('custom', [False, True])
    @pytest.mark.parametrize('model', ['convnext_atto', 'resnet18'])
    def test_values_of_fill_change_nothing(self, model: str, custom: bool) -> None:
        image, valid = patches_and_valid()
        results = []
        for fill in (
            torch.zeros(()),
            1e6 * torch.randn_like(image),
            torch.tensor(torch.nan),
        ):
            batch = {'image': image.where(valid, fill), 'valid': valid}
            results.append(learn(batch, not custom, model=model))
        for result in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(result[name], value), name

    def test_fill_in_the_views_changes_nothing(self) -> None:
        """``compute_losses`` by itself: noise on fill pixels carries nothing either."""
        image, valid = patches_and_valid()
        torch.manual_seed(0)
        task = CMID(**SMALL).eval()
        task.views.augmentations = Views(64, torch.nn.Identity())
        drawn = task.views({'image': image, 'valid': valid})
        views, masks, grids, pixels = drawn
        assert pixels[0].shape == (4, 1, 64, 64)
        losses = []
        for seed in range(2):
            torch.manual_seed(seed)
            changed = tuple(
                view.where(known, torch.randn_like(view))
                for view, known in zip(views, pixels, strict=True)
            )
            losses.append(
                task.compute_losses(
                    changed, masks, grids, valid=pixels, teacher_temperature=0.04
                )
            )
        assert losses[0] == losses[1]

    def test_reconstruction_of_fill_is_free(self) -> None:
        """No gradient where there is fill, for either part of the loss."""
        image, valid = patches_and_valid()
        torch.manual_seed(0)
        task = CMID(**SMALL, global_branch=None, local_branch=False)
        task.views.augmentations = Views(64, torch.nn.Identity())
        drawn = task.views({'image': image, 'valid': valid})
        predictions: list[Tensor] = []

        def keep(module: Any, args: Any, prediction: Tensor) -> None:
            prediction.retain_grad()
            predictions.append(prediction)

        task.student.decoder.register_forward_hook(keep)
        task.compute_losses(*drawn, teacher_temperature=0.04)['loss'].backward()
        for prediction, pixels in zip(predictions, drawn[3], strict=True):
            assert prediction.grad is not None
            counts = (prediction.grad != 0).any(dim=1, keepdim=True)
            assert torch.equal(counts, pixels)

    def test_masked_fill_does_not_count(self) -> None:
        """The spatial loss is a mean over the masked pixels that are valid."""
        image, valid = patches_and_valid()
        torch.manual_seed(0)
        task = CMID(**SMALL, global_branch=None, local_branch=False).eval()
        task.views.augmentations = Views(64, torch.nn.Identity())
        drawn = task.views({'image': image, 'valid': valid})
        views, masks, _, pixels = drawn
        losses = task.compute_losses(*drawn, teacher_temperature=0.04)
        expected = []
        for view, mask, known in zip(views, masks, pixels, strict=True):
            view = fill_with_valid_mean(view, known)
            d = (task.student.decoder(task.student(view, mask)) - view).abs()
            counts = expand_mask(mask, 64).bool() & known
            d = d.movedim(1, -1)[counts[:, 0]]  # (pixels, C)
            expected.append((d * (2 * torch.sigmoid(0.2 * d) - 1)).mean())
        torch.testing.assert_close(losses['spatial'], torch.stack(expected).mean())

    def test_nothing_but_fill(self) -> None:
        for model in ('convnext_atto', 'resnet18'):
            batch = {
                'image': torch.full((3, 4, 80, 80), torch.nan),
                'valid': torch.zeros(3, 1, 80, 80, dtype=torch.bool),
            }
            result = learn(batch, model=model)
            assert all(torch.isfinite(value).all() for value in result.values())
            assert result['reconstruction'] == 0
            assert result['local'] == 0
            assert (result['center'] == 0).all()

    def test_no_fill(self) -> None:
        """A mask that is all valid changes nothing but rounding."""
        image, valid = patches_and_valid()
        plain = learn({'image': image})
        masked = learn({'image': image, 'valid': torch.ones_like(valid)})
        for name, value in plain.items():
            torch.testing.assert_close(masked[name], value, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize('knows_fill', [False, True])
    def test_each_is_done_once(
        self, knows_fill: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Patches and each view are filled once, limited once, looked up once."""
        done: list[str] = []

        def count(module: ModuleType, name: str) -> None:
            function = getattr(module, name)

            def counted(*args: Any) -> Any:
                done.append(f'{name} {args[0].shape[-1]}')
                return function(*args)

            monkeypatch.setattr(module, name, counted)

        count(masked_views, 'fill_with_valid_mean')
        count(masked_views, 'limit_values')
        count(masked_views if not knows_fill else views, 'warp_valid')
        count(cmid, 'fill_with_valid_mean')
        image, valid = patches_and_valid()
        learn({'image': image, 'valid': valid}, knows_fill)
        assert Counter(done) == {
            'fill_with_valid_mean 80': 1,
            'limit_values 80': 1,
            'warp_valid 80': 2,
            'fill_with_valid_mean 64': 2,
        }
