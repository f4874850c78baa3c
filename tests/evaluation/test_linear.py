# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Linear probes on embeddings of which it is known what a line can tell apart."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from torch import Tensor

from torchgeo_cmid.evaluation import Features, accuracies, few_shot, linear_probe
from torchgeo_cmid.evaluation.features import standardise, to_numpy
from torchgeo_cmid.evaluation.linear import STRENGTHS, choose_strength


def draw(
    number: int, features: int = 16, seed: int = 0, noise: float = 3.0
) -> Features:
    """Three classes around means that overlap."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(number) % 3
    x = torch.eye(3, features)[y] * 3
    return Features(x + noise * torch.randn(x.shape, generator=generator), y)


def scores(memory: Features, held_out: Features) -> dict[float, float]:
    """Accuracy of each C on what is held out."""
    x, y, others = (to_numpy(each) for each in (*memory, held_out.x))
    found = {}
    for c in STRENGTHS:
        regression = LogisticRegression(C=c, max_iter=1000, tol=1e-3).fit(x, y)
        found[c] = float(np.mean(regression.predict(others) == to_numpy(held_out.y)))
    return found


class TestLinearProbe:
    def test_half_plane(self) -> None:
        """A line tells x > y from x < y wherever the images lie."""
        torch.manual_seed(0)
        x = torch.rand(400, 2) * torch.tensor([1.0, 1000.0])
        y = (x[:, 0] > x[:, 1] / 1000).long()
        memory, queries = Features(x[:300], y[:300]), Features(x[300:], y[300:])
        found = linear_probe(memory, queries.x)
        assert accuracies(found, queries.y)[0] >= 0.97

    def test_no_line(self) -> None:
        """Quadrants of equal sign are no half plane: two thirds at best, for a half."""
        grid = torch.linspace(-1, 1, 20)
        x = torch.cartesian_prod(grid, grid)
        y = (x.prod(dim=1) > 0).long()
        memory = Features(x[::2], y[::2])
        assert accuracies(linear_probe(memory, x[1::2]), y[1::2])[0] < 0.67

    @pytest.mark.parametrize('held', [True, False], ids=['held out', 'folds'])
    def test_one_class(self, held: bool) -> None:
        memory = Features(torch.randn(8, 2), torch.full((8,), 4))
        with pytest.raises(ValueError, match=r'all of class \[4\]'):
            linear_probe(memory, torch.randn(2, 2), memory if held else None)

    def test_one_image_each(self) -> None:
        memory = Features(torch.eye(3), torch.arange(3))
        with pytest.raises(ValueError, match='two images of a class'):
            linear_probe(memory, torch.eye(3))


class TestChooseStrength:
    def test_held_out(self) -> None:
        """The best C on what is held out, and the least of equals."""
        memory, held_out = draw(60, 64), draw(300, 64, seed=1)
        found = scores(memory, held_out)
        best = max(found.values())
        expected = min(c for c, score in found.items() if score == best)
        assert choose_strength(memory, held_out) == expected
        assert len(set(found.values())) > 2

    def test_folds(self) -> None:
        """Each image is held out once, and classes are as frequent in all folds."""
        memory = draw(90, 64)
        x, y = to_numpy(memory.x), to_numpy(memory.y)
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        found = [
            cross_val_score(LogisticRegression(C=c, tol=1e-3), x, y, cv=folds).mean()
            for c in STRENGTHS
        ]
        assert choose_strength(memory) == STRENGTHS[int(np.argmax(found))]
        assert max(found) > min(found) + 0.02

    def test_cells_of_an_image_stay_together(self) -> None:
        """Else the copies of a cell that are in the memory would find its class."""
        torch.manual_seed(0)
        x = torch.randn(30, 200).repeat_interleave(5, dim=0)
        y = torch.arange(30).repeat_interleave(5) % 2
        y = y[torch.arange(150) // 5 * 5]
        images = torch.arange(30).repeat_interleave(5)
        x = standardise(x)(x)
        assert score_of_folds(x, y, None) == 1
        assert score_of_folds(x, y, images) < 0.7


def score_of_folds(x: Tensor, y: Tensor, groups: Tensor | None) -> float:
    """Best accuracy on folds, by the search that chooses C."""
    found: list[float] = []
    fit = GridSearchCV.fit

    def watched(self: GridSearchCV, *args: object, **kwargs: object) -> GridSearchCV:
        fit(self, *args, **kwargs)
        found.append(self.best_score_)
        return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridSearchCV, 'fit', watched)
        choose_strength(Features(x, y), groups=groups)
    return found[0]


class TestFewShot:
    @pytest.mark.parametrize('shots', [1, 5, 10])
    def test_clear_classes(self, shots: int) -> None:
        y = torch.arange(40) % 4
        memory = Features(torch.eye(4)[y], y)
        assert few_shot(memory, memory, shots).tolist() == pytest.approx([1, 1])

    def test_nothing_to_tell(self) -> None:
        """All of one class then: 1 / K."""
        y = torch.arange(40) % 4
        memory = Features(torch.ones(40, 3), y)
        assert few_shot(memory, memory, 5).tolist() == pytest.approx([0.25, 0.25])

    def test_more_labels_help(self) -> None:
        memory, queries = draw(300), draw(300, seed=1)
        found = [float(few_shot(memory, queries, n)[0]) for n in (1, 5, 10)]
        assert found == sorted(found)
        assert found[2] > found[0] + 0.05

    def test_draws(self) -> None:
        """The same for the same seed, and the mean of several."""
        memory, queries = draw(60), draw(61, seed=1)
        one, two, three = (few_shot(memory, queries, 2, draws=n) for n in (1, 2, 3))
        assert len({float(each[0]) for each in (one, two, three)}) == 3
        # a draw is a whole number of images, their mean mostly none
        assert float(61 * one[0]) == pytest.approx(round(float(61 * one[0])))
        assert three.equal(few_shot(memory, queries, 2, draws=3))
        assert not three.equal(few_shot(memory, queries, 2, draws=3, seed=1))

    def test_too_few(self) -> None:
        memory = draw(6)
        with pytest.raises(ValueError, match='5 labels per class, but class 0 has 2'):
            few_shot(memory, memory, 5)
