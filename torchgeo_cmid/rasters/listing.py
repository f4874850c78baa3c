# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The names of a million images in little memory: none of the files is opened."""

import hashlib
import os
from collections.abc import Iterable, Iterator

import numpy as np

from .files import is_remote

#: Endings of images, in lower case.
IMAGES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff')


class Names:
    """Images by number, sorted by folder and name: bytes, and where each begins.

    Worker processes share its memory, which a list of strings would not stay.
    """

    def __init__(self, roots: Iterable[str]) -> None:
        """Initialize a new Names instance.

        Links to folders are followed once; hidden files and folders are left out. A
        link and the image of the list that it leads to are one.

        Args:
            roots: Local folders.

        Raises:
            FileNotFoundError: If one is no local folder, or holds no image.
        """
        #: Folders: the one that was named, and the path in it.
        self.folders: list[tuple[str, str]] = []
        names: list[bytes] = []
        numbers: list[int] = []
        seen: set[str] = set()
        for root in roots:
            root = os.path.expanduser(root)
            if is_remote(root) or not os.path.isdir(root):
                raise FileNotFoundError(
                    f'paths={root!r}: not a local folder; give a folder of images'
                )
            before = len(names)
            for inside, found in _walk(root, '', seen):
                numbers += [len(self.folders)] * len(found)
                names += found
                self.folders.append((root, inside))
            if len(names) == before:
                raise FileNotFoundError(
                    f'paths={root!r}: the folder holds no {", ".join(IMAGES)} file'
                )
        if not names:
            raise FileNotFoundError('paths is empty. Give a folder of images.')
        self._names = b''.join(names)
        ends = np.fromiter(map(len, names), np.int64, len(names)).cumsum()
        self._starts = np.concatenate([[0], ends])
        #: Number of the folder of each image (n,).
        self.folder = np.array(numbers, dtype=np.int32)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.folder)

    def _name(self, number: int) -> str:
        """Name of a file."""
        return os.fsdecode(self._names[self._starts[number] : self._starts[number + 1]])

    def path(self, number: int) -> str:
        """Find the path of an image.

        Args:
            number: Its number.

        Returns:
            The path.
        """
        root, inside = self.folders[self.folder[number]]
        return os.path.join(root, inside, self._name(number))

    def shares(self, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Hash names, with the path in the folder that was given, to numbers.

        Args:
            seed: Chooses other numbers.

        Returns:
            A number in 0 to 1 for each image (n,), whatever other images there are.
        """
        salt = str(seed).encode()
        hashes = np.empty(len(self), dtype=np.uint64)
        for number in range(len(self)):
            inside = self.folders[self.folder[number]][1]
            name = os.fsencode(os.path.join(inside, self._name(number)))
            digest = hashlib.blake2b(name, digest_size=8, key=salt).digest()
            hashes[number] = int.from_bytes(digest, 'little')
        return hashes / 2.0**64


def _walk(root: str, inside: str, seen: set[str]) -> Iterator[tuple[str, list[bytes]]]:
    """List the images of a folder and of those in it, each folder once."""
    folder = os.path.join(root, inside)
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    names: list[str] = []
    links: list[str] = []
    subfolders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            if entry.is_dir():
                subfolders.append(entry.name)
            elif entry.name.lower().endswith(IMAGES):
                (links if entry.is_symlink() else names).append(entry.name)
    own = set(names) if links else set()
    for name in sorted(links):
        target = os.path.realpath(os.path.join(folder, name))
        local = os.path.dirname(target) == real and os.path.basename(target) in own
        if not local and target not in seen:
            seen.add(target)
            names.append(name)
    if names:
        yield inside, sorted(map(os.fsencode, names))
    for name in sorted(subfolders):
        yield from _walk(root, os.path.join(inside, name), seen)
