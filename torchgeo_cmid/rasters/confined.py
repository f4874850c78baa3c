# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A folder out of which no link leads, whatever is put in its place in mid-run."""

import errno
import os
import stat
from contextlib import suppress
from typing import Any

#: How folders and files are opened: never through a link, never waiting for a pipe.
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ConfinedFolder:
    """A local folder, its sub-folders and the files in both.

    It is opened once by each process. What is done in it is done in that very folder:
    when another one stands under its name, nothing is until that is taken on.
    """

    def __init__(self, path: str) -> None:
        """Initialize a new ConfinedFolder instance.

        Args:
            path: Where it is, or is going to be, without links.
        """
        self.path = path
        #: Device and number of the folder that was taken on.
        self._identity: tuple[int, int] | None = None
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Travel to other processes closed: they have descriptors of their own."""
        return vars(self) | {'_descriptor': None}

    def __del__(self) -> None:
        """Close the folder."""
        self._close()

    def take_on(self) -> None:
        """Take on what stands under its name, made if there is nothing.

        Raises:
            FileExistsError: If it is a file.
            NotADirectoryError: If it is below a file.
            OSError: If it cannot be made, or a link stands in its place.
        """
        os.makedirs(self.path, exist_ok=True)
        self.leave()
        if os.path.realpath(self.path) != self.path:
            raise OSError(
                errno.ELOOP, 'a link has taken its place, or that of a folder above it'
            )
        self._descriptor = os.open(self.path, FOLDER)
        seen = os.fstat(self._descriptor)
        self._identity = seen.st_dev, seen.st_ino

    def leave(self) -> None:
        """Have no more to do with the folder that was taken on."""
        self._close()
        self._identity = None

    def same(self) -> bool:
        """Tell whether the folder that was taken on still stands under its name.

        Returns:
            False if it was deleted or another one has taken its place.
        """
        try:
            now = os.lstat(self.path)
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == self._identity

    def names(self) -> list[str]:
        """List what is in it.

        Returns:
            The names.
        """
        return os.listdir(self._open())

    def space(self) -> tuple[int, int]:
        """Look up the space of its disk.

        Returns:
            Bytes that are free, and all.
        """
        disk = os.fstatvfs(self._open())
        return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize

    def open(self, folder: str, name: str) -> int | None:
        """Open a file to read it.

        Args:
            folder: Sub-folder that it is in, empty for none.
            name: Its name.

        Returns:
            A descriptor, None if there is no regular file of that name.
        """
        try:
            within = self._enter(folder)
        except OSError:
            return None
        try:
            file = os.open(name, os.O_RDONLY | FILE, dir_fd=within)
        except OSError:
            return None
        finally:
            self._go_out(within)
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        return None

    def holds(self, folder: str, name: str) -> bool:
        """Tell whether there is a regular file.

        Args:
            folder: Sub-folder that it is in.
            name: Its name.

        Returns:
            True if there is.
        """
        file = self.open(folder, name)
        if file is not None:
            os.close(file)
        return file is not None

    def write(
        self, folder: str, name: str, content: bytes, unfinished: str, sync: bool
    ) -> None:
        """Write a file whole or not at all.

        Args:
            folder: Sub-folder that it is in, made if need be; empty for none.
            name: Its name.
            content: What to write.
            unfinished: Its name until it is finished, in the folder itself.
            sync: Have it on the disk before it has its name.

        Raises:
            OSError: If it cannot be written there.
        """
        root = self._open()
        if folder:
            with suppress(FileExistsError):
                os.mkdir(folder, dir_fd=root)
        within = self._enter(folder)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE
            with open(os.open(unfinished, flags, 0o666, dir_fd=root), 'wb') as file:
                file.write(content)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(unfinished, name, src_dir_fd=root, dst_dir_fd=within)
        finally:
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=root)
            self._go_out(within)

    def tidy(self, start: str, before: float) -> None:
        """Remove old files of the folder itself.

        Args:
            start: How their names begin.
            before: Time in seconds since when those that stay were changed.
        """
        root = self._open()
        names: list[str] = []
        with suppress(OSError):  # another time, or by another user
            names = os.listdir(root)
        for name in names:
            if name.startswith(start):
                with suppress(OSError):
                    seen = os.stat(name, dir_fd=root, follow_symlinks=False)
                    if seen.st_mtime < before:
                        os.unlink(name, dir_fd=root)

    def _open(self) -> int:
        """Open the folder, once in each process."""
        if not self.same():
            self._close()
            raise FileNotFoundError(errno.ENOENT, 'it is another folder now')
        if self._descriptor is None:
            self._descriptor = os.open(self.path, FOLDER)
        return self._descriptor

    def _enter(self, folder: str) -> int:
        """Open a sub-folder, or the folder itself."""
        root = self._open()
        return os.open(folder, FOLDER, dir_fd=root) if folder else root

    def _go_out(self, within: int) -> None:
        """Close a sub-folder again."""
        if within != self._descriptor:
            os.close(within)

    def _close(self) -> None:
        """Close the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
