# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Files of one band each that are one scene: by a pattern, or by names of bands."""

import os
import re
from collections.abc import Sequence

from .dates import GROUPS
from .raster import Grid, band_indexes, check_raster
from .timeouts import check_pattern

#: Names of bands as they stand between separators in names of files.
BAND = re.compile(
    r"""(?<![A-Za-z0-9])(?P<band>
        (?-i:(?:(?:SR|ST|TOA)_)?B(?:0?[1-9]|1\d)A?) |    # Sentinel-2, Landsat
        band_?\d{1,2} |
        coastal(?:_?aerosol)? | blue | green | yellow | red | pan(?:chromatic)? |
        red_?edge_?\d? | nir(?:_?(?:08|09|[0-9]|narrow|broad))? |
        swir(?:_?(?:16|22|[0-9]))? | lwir(?:_?(?:11|12|[0-9]))? | tir_?\d? |
        thermal | cirrus | vv | vh | hh | hv
    )(?P<res>_\d{2}m)?(?![A-Za-z0-9])""",
    re.VERBOSE | re.IGNORECASE,
)

#: Names of what says how good pixels are, and of pictures made of bands.
QUALITY = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        (?:SR_|ST_)?QA(?:60|10|20)?(?:_?(?:PIXEL|RADSAT|AEROSOL))? | BQA | SCL | AOT |
        WVP | TCI | CLD(?:PRB)? | SNW(?:PRB)? | MSK_?\w* | f?mask | clouds? |
        cloud_?\w* | udm2? | pixel_qa | radsat_qa | sr_aerosol |
        ST_(?:ATRAN|CDIST|DRAD|EMIS|EMSD|TRAD|URAD)
    )(?P<res>_\d{2}m)?(?![A-Za-z0-9])""",
    re.VERBOSE | re.IGNORECASE,
)

#: Folders of a product that hold bands of one resolution: R10m.
RESOLUTION = re.compile(r'(?<=/)R\d{2}m(?=/)')


def group_by_band(files: list[str], filename_regex: str) -> list[str | dict[str, str]]:
    """Put the files that hold one band each of the same scene together.

    The files of a scene lie in one folder and differ in the group ``band`` of their
    names alone, as :class:`~torchgeo.datasets.RasterDataset` has it. Where there is a
    group ``resolution``, as in the pattern of :class:`~torchgeo.datasets.Sentinel2`,
    they may differ in that too, and in a folder ``R10m``, ``R20m`` or ``R60m``; of a
    band in several resolutions the finest is taken.

    Args:
        files: Files, sorted.
        filename_regex: Verbose regular expression with a group named ``band``, or one
            of those that tell the time of a scene. Files that it does not match are
            left out; one that it matches without the group ``band`` holds all bands of
            its scene.

    Returns:
        For each scene its file, or its files by band.

    Raises:
        FileNotFoundError: If it matches no file.
        ValueError: If it is not a regular expression with one of these groups.
    """
    check_pattern(filename_regex, [file.rpartition('/')[2] for file in files])
    try:
        regex = re.compile(filename_regex, re.VERBOSE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f'filename_regex={filename_regex!r} is no regular expression: {error}'
        ) from error
    if not {'band', *GROUPS} & set(regex.groupindex):
        raise ValueError(
            f'filename_regex={filename_regex!r} has no group named band, date, start '
            r'or stop; mark where it stands, for example .*_(?P<band>B\d+)\.TIF'
        )

    for one, other in (('start', 'stop'), ('stop', 'start')):
        if one in regex.groupindex and other not in regex.groupindex:
            raise ValueError(
                f'filename_regex={filename_regex!r} has a group {one}, but none named '
                f'{other}: the time of a scene needs both, or one named date'
            )

    scenes: dict[tuple[str, str], str | dict[str, str]] = {}
    finest: dict[tuple[str, str, str], tuple[int, str]] = {}
    for file in files:
        folder, _, name = file.rpartition('/')
        match = regex.match(name)
        if match is None:
            continue
        if match.groupdict().get('band') is None:
            scenes[folder, name] = file
            continue
        spans = [match.span('band')]
        resolution = match.groupdict().get('resolution')
        if resolution is not None:
            spans.append(match.span('resolution'))
            folder = RESOLUTION.sub('R*', f'{folder}/')
        rest = name
        for start, end in sorted(spans, reverse=True):
            rest = f'{rest[:start]}*{rest[end:]}'
        bands = scenes.setdefault((folder, rest), {})
        assert isinstance(bands, dict)  # no file name holds the key of another
        if resolution is not None:
            digits = re.search(r'\d+', resolution)
            length = int(digits[0]) if digits else 0, resolution
            if finest.setdefault((folder, rest, match['band']), length) < length:
                continue
            finest[folder, rest, match['band']] = length
        bands[match['band']] = file
    if not scenes:
        raise FileNotFoundError(
            f'filename_regex={filename_regex!r} matches none of {len(files)} files, '
            f'for example {os.path.basename(files[0])}'
        )
    return list(scenes.values())


def guess_bands(files: Sequence[str]) -> list[str | dict[str, str]]:
    """Put files together whose names differ in the name of a band alone.

    Args:
        files: Files, sorted.

    Returns:
        For each scene its file, or its files by band. Files that say how good pixels
        are are left out beside such scenes.
    """
    groups: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
    keys: dict[str, tuple[tuple[str, str], str] | None] = {}
    for file in files:
        match = _last(BAND, file)
        keys[file] = None
        if match is None:
            continue
        keys[file] = key, band = _key(file, match), match['band']
        bands = groups.setdefault(key, {})
        known = bands.get(band)
        # the finest of several resolutions
        if known is None or (match['res'] or '') < known[0]:
            bands[band] = match['res'] or '', file
    products = {key[0] for key, bands in groups.items() if len(bands) > 1}
    found: list[str | dict[str, str]] = []
    done = set()
    for file in files:
        told = keys[file]
        if told is None or len(groups[told[0]]) < 2:
            folder, _, name = file.rpartition('/')
            product = RESOLUTION.sub('R*', f'{folder}/')
            beside = product in products or folder.endswith('/QI_DATA')
            if not (products and beside and _last(QUALITY, name)):
                found.append(file)
        elif told[0] not in done:
            done.add(told[0])
            scene = groups[told[0]]
            found.append({band: path for band, (_, path) in scene.items()})
    return found


def belong_together(files: dict[str, str], drivers: tuple[str, ...]) -> bool:
    """Tell whether files have one band each, and show the same ground.

    Args:
        files: Files by band.
        drivers: GDAL's drivers that may open them, besides those of the short list.

    Returns:
        True if they do, in one coordinate reference system, to a pixel.

    Raises:
        OSError: If one is not a readable raster.
        ValueError: If one cannot be used.
    """
    grids = []
    for path in files.values():
        grids.append(check_raster(path, drivers))
        if len(band_indexes(path, drivers=drivers)) != 1:
            return False
    first = grids[0]
    return all(grid.crs == first.crs and _same_extent(grid, first) for grid in grids)


def _same_extent(grid: Grid, other: Grid) -> bool:
    """Tell whether the corners of two grids are the same, to a pixel of either."""
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    for one, two in ((grid, other), (other, grid)):
        for col, row in corners:
            place = two.transform @ (col * two.width, row * two.height)
            x, y = ~one.transform @ place
            if max(abs(x - col * one.width), abs(y - row * one.height)) <= 1:
                continue
            x, y = ~two.transform @ (
                one.transform @ (col * one.width, row * one.height)
            )
            if max(abs(x - col * two.width), abs(y - row * two.height)) > 1:
                return False
    return True


def _last(pattern: re.Pattern[str], file: str) -> re.Match[str] | None:
    """Find the last place of a file's name that a pattern matches."""
    found = list(pattern.finditer(os.path.basename(file)))
    return found[-1] if found else None


def _key(file: str, match: re.Match[str]) -> tuple[str, str]:
    """Name what is the same for all files of a scene."""
    folder, _, name = file.rpartition('/')
    product = RESOLUTION.sub('R*', f'{folder}/')
    return product, f'{name[: match.start()]}*{name[match.end() :]}'.lower()
