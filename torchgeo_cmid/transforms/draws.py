# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What kornia draws for the images of a batch, and changing those that were chosen.

The draws are small and stay on the host, as kornia's are by default: what is to be done
is known there without waiting for the device.
"""

from collections.abc import Callable, Iterator

from kornia.augmentation import AugmentationBase2D
from torch import Tensor

#: What lies between two passes over a part of a batch should stay in a CPU's cache, and
#: each pass be worth the threads' waiting for one another, which takes long where other
#: processes use the cores: 6 MiB are the fastest on idle cores, 16 on busy ones.
PART_BYTES = 16 * 2**20


def parts(x: Tensor) -> Iterator[slice]:
    """Divide a batch into parts that a CPU keeps in its cache.

    Args:
        x: Images, (B, C, H, W).

    Yields:
        The images of each part: on a CPU a few, on any other device all.
    """
    count = len(x)
    if x.device.type == 'cpu':
        image_bytes = x[0].numel() * x.element_size() if count else 1
        count = PART_BYTES // image_bytes
    count = max(count, 1)
    for start in range(0, len(x), count):
        yield slice(start, start + count)


class Draw:
    """What an augmentation of kornia has drawn for each image of a batch."""

    def __init__(
        self, augmentation: AugmentationBase2D, shape: tuple[int, ...]
    ) -> None:
        """Draw.

        Args:
            augmentation: An augmentation of kornia, on the host.
            shape: Shape of the batch, (B, C, H, W).
        """
        self.values = augmentation.forward_parameters(shape)
        self.chosen = self.values.pop('batch_prob') > 0.5  # (B,) bool

    def take(self, name: str, like: Tensor, part: slice | Tensor) -> Tensor:
        """Take the values of some images, shaped for broadcasting over them.

        Args:
            name: Name of the values, one per image.
            like: A tensor of the images' type and device.
            part: Which images.

        Returns:
            Values, (n, 1, 1, 1).
        """
        values = self.values[name][part].to(like, non_blocking=True)
        return values.view(-1, 1, 1, 1)

    def change(
        self,
        x: Tensor,
        part: slice,
        function: Callable[..., None],
        *names: str,
        **images: Tensor | None,
    ) -> None:
        """Change the chosen images of a part in place.

        Args:
            x: The images of the part, (n, C, H, W).
            part: Which of the batch they are.
            function: Changes images in place, given the values of *names*.
            *names: Names of the values.
            **images: What else *function* is given, for each image of the batch, (B,
                ...), or None.
        """
        index = self.chosen[part].nonzero().flatten()
        if len(index) == 0:
            return
        values = [self.take(name, x, part.start + index) for name in names]
        given = {n: None if i is None else i[part] for n, i in images.items()}
        if len(index) == len(x):
            function(x, *values, **given)
            return
        index = index.to(x.device, non_blocking=True)
        chosen = x.index_select(0, index)
        given = {n: None if i is None else i[index] for n, i in given.items()}
        function(chosen, *values, **given)
        x.index_copy_(0, index, chosen)
