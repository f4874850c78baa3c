# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A region of interest, as polygons in longitude and latitude."""

import json
import os
from collections.abc import Sequence

import geopandas
import shapely
from pyogrio.errors import DataSourceError  # type: ignore[import-untyped]
from rasterio.crs import CRS
from rasterio.warp import transform_geom
from shapely.errors import ShapelyError
from shapely.geometry import mapping, shape

from .errors import GDAL_ERRORS
from .files import is_remote
from .opening import look_into
from .scene import EDGE_POINTS, LONLAT
from .timeouts import time_limits

#: A vector file, or the west, south, east and north of a box, or polygons.
type Region = str | Sequence[float] | shapely.Geometry


def read_region(roi: Region) -> shapely.Geometry:
    """Make a region of interest of what a user gives.

    Args:
        roi: A file of polygons (GeoPackage, GeoJSON, Shapefile, ...) in any CRS, or the
            west, south, east and north of a box in degrees (west > east: across the
            antimeridian), or polygons in longitude and latitude.

    Returns:
        Polygons in longitude and latitude, cut at the antimeridian.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no area on the Earth.
    """
    if isinstance(roi, str):
        return _read_file(os.path.expanduser(roi))
    if isinstance(roi, shapely.Geometry):
        region, name = roi, f'roi={roi.wkt:.80}'
    else:
        region, name = _box(list(roi)), f'roi={list(roi)}'
    return _check(region, name)


def _box(bounds: list[float]) -> shapely.Geometry:
    """Make a box in degrees."""
    message = f'roi={bounds} must be [west, south, east, north] in degrees'
    if len(bounds) != 4:
        raise ValueError(f'{message}, which is 4 numbers')
    west, south, east, north = bounds
    if not (-180 <= west <= 180 and -180 <= east <= 180):
        raise ValueError(f'{message}: west and east in -180 to 180')
    if not -90 <= south < north <= 90:
        raise ValueError(f'{message}: south below north, both in -90 to 90')
    if west > east:
        parts = [(west, south, 180, north), (-180, south, east, north)]
        return shapely.MultiPolygon([shapely.box(*part) for part in parts])
    return shapely.box(west, south, east, north)


#: How files of formats begin that hold polygons and lead nowhere else.
FORMATS = {
    b'SQLite format 3\0': 'GeoPackage',
    b'\0\0\x27\x0a': 'Shapefile',
    b'fgb\x03': 'FlatGeobuf',
    b'PAR1': 'GeoParquet',
    b'PK\x03\x04': 'a Shapefile in an archive',
}

#: What the type of a GeoJSON may be.
GEOJSON = {
    *('FeatureCollection', 'Feature', 'GeometryCollection', 'Polygon', 'MultiPolygon'),
    *('Point', 'MultiPoint', 'LineString', 'MultiLineString'),
}


def check_region(path: str) -> None:
    """Refuse a local vector file whose content may lead elsewhere.

    Args:
        path: A path that exists, or one of GDAL's.

    Raises:
        ValueError: If it is of none of a few formats, or a pipe stands beside it.
    """
    if is_remote(path):
        return
    folder, name = os.path.split(path)
    for odd in look_into(folder or '.').odd:
        if os.path.splitext(odd)[0].lower() == os.path.splitext(name)[0].lower():
            raise ValueError(
                f'roi={path!r}: beside it {odd!r} is a pipe, socket or device; remove '
                'it'
            )
    with open(path, 'rb') as file:
        start = file.read(16)
        if any(start.startswith(mark) for mark in FORMATS):
            return
        content = start + file.read()
    known = [*FORMATS.values(), 'GeoJSON']
    message = (
        f'roi={path!r}: not a readable vector file ({", ".join(known)}); give a '
        'GeoPackage or GeoJSON of polygons'
    )
    try:
        text = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{message} ({error!s:.200})') from error
    kind = text.get('type') if isinstance(text, dict) else None
    if kind not in GEOJSON:
        raise ValueError(f'{message} (its type is {kind!r:.40})')


def _read_file(path: str) -> shapely.Geometry:
    """Read the polygons of a vector file."""
    if not is_remote(path) and not os.path.isfile(path):
        raise FileNotFoundError(f'roi={path!r}: no such file, or no regular one')
    check_region(path)
    try:
        with time_limits():
            frame = geopandas.read_file(path, columns=[])
    except (DataSourceError, UnicodeDecodeError, ShapelyError) as error:
        raise ValueError(
            f'roi={path!r}: not a readable vector file; give a GeoPackage or GeoJSON '
            f'of polygons ({error})'
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame) or frame.empty:
        raise ValueError(f'roi={path!r}: holds no polygon')
    if frame.crs is None:
        raise ValueError(f'roi={path!r}: no coordinate reference system; give it one')
    crs = CRS.from_user_input(frame.crs)
    try:
        region = shapely.union_all(shapely.make_valid(frame.geometry.array))
        if crs != LONLAT and not region.is_empty:
            left, bottom, right, top = region.bounds
            region = shapely.segmentize(
                region, max(right - left, top - bottom, 1e-9) / EDGE_POINTS
            )
            region = shape(transform_geom(crs, LONLAT, mapping(region)))
    except (*GDAL_ERRORS, ShapelyError) as error:
        raise ValueError(
            f'roi={path!r}: its outline has no longitude and latitude; correct its '
            f'coordinates or coordinate reference system ({error!s:.200})'
        ) from error
    return _check(region, f'roi={path!r}')


def _check(region: shapely.Geometry, name: str) -> shapely.Geometry:
    """Refuse what is no area on the Earth."""
    try:
        region = shapely.make_valid(region)
    except ShapelyError as error:
        raise ValueError(
            f'{name}: its coordinates make no polygon; correct them ({error!s:.200})'
        ) from error
    if not region.area > 0:
        raise ValueError(f'{name}: holds no polygon; give one that has an area')
    west, south, east, north = region.bounds
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise ValueError(
            f'{name}: reaches from {west:g}, {south:g} to {east:g}, {north:g}; give '
            'it in longitude and latitude, in degrees'
        )
    return region
