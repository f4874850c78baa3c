# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Patches lie in a region of interest, in any CRS."""

import os
import socket
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import Affine

from tests.data.geotiff.data import ORIGIN, generate, write_scene
from torchgeo_cmid.datasets import Patch, Scenes


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read().astype(np.float32)


def starts(dataset: Scenes, scene: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = dataset.scenes[scene].height, dataset.scenes[scene].width
    rows, cols = np.mgrid[: height - size + 1, : width - size + 1]
    return rows.ravel(), cols.ravel()


class TestRegion:
    def polygon(self) -> shapely.Polygon:
        """A triangle in the grid of the first generated scene."""
        x, y = ORIGIN
        return shapely.Polygon(
            [(x + 300, y - 300), (x + 1500, y - 300), (x + 300, y - 1500)]
        )

    @pytest.mark.parametrize('ending', ['gpkg', 'geojson'])
    def test_polygons_of_a_file(self, tmp_path: Path, ending: str) -> None:
        files = generate(tmp_path, 2)
        path = tmp_path / f'roi.{ending}'
        frame = geopandas.GeoDataFrame(geometry=[self.polygon()], crs='EPSG:32621')
        if ending == 'geojson':
            frame = frame.to_crs('EPSG:4326')
        frame.to_file(path)
        dataset = Scenes(tmp_path, roi=str(path))
        assert len(dataset) == 1
        scene = dataset.scenes[0]
        assert (scene.height, scene.width) == pytest.approx((40, 40), abs=1)
        assert scene.origin == pytest.approx((10, 10), abs=1)
        np.testing.assert_array_equal(
            dataset[Patch(0, 0, 0, 16)]['image'],
            read(files[0])[:, scene.origin[0] :, scene.origin[1] :][:, :16, :16],
        )
        rows, cols = starts(dataset, 0, 16)
        keep = scene.eligible(rows, cols, 16)
        inside = np.array(
            [
                self.polygon()
                .buffer(0.5)
                .covers(
                    shapely.box(
                        *rasterio.transform.array_bounds(
                            16, 16, scene.transform @ Affine.translation(col, row)
                        )
                    )
                )
                for row, col in zip(rows, cols, strict=True)
            ]
        )
        np.testing.assert_array_equal(keep, inside)
        assert 10 < keep.sum() < keep.size / 2
        place = dataset.index.geometry.iloc[0]
        assert place.area == pytest.approx(frame.to_crs(4326).area[0], rel=0.02)

    def test_box_that_holds_everything_changes_nothing(self, tmp_path: Path) -> None:
        generate(tmp_path, 2)
        dataset = Scenes(tmp_path, roi=[-60, 60, -50, 70])
        assert dataset.scenes == Scenes(tmp_path).scenes

    def test_across_the_antimeridian(self, tmp_path: Path) -> None:
        path = write_scene(
            tmp_path / 'a.tif', crs='EPSG:32601', res=1000, origin=(320_000, 7e6)
        )
        assert Scenes(path, roi=[179, 60, -179, 65]).scenes == Scenes(path).scenes
        both = Scenes(path, roi=[179.8, 60, -179.8, 65]).scenes[0]
        east = Scenes(path, roi=[-180, 60, -179.8, 65]).scenes[0]
        assert both.region is not None
        assert both.region.geom_type == 'Polygon'
        assert both.region.area == pytest.approx(2 * east.region.area, rel=0.01)

    def test_rotated_scene(self, tmp_path: Path) -> None:
        turn = Affine.translation(*ORIGIN) @ Affine.rotation(30) @ Affine.scale(30, -30)
        path = write_scene(tmp_path / 'a.tif', transform=turn)
        whole = Scenes(path)
        outline = whole.index.geometry.iloc[0]
        west, south, east, north = outline.bounds
        middle = [(west + east) / 2, (south + north) / 2]
        dataset = Scenes(path, roi=[west, south, *middle])
        rows, cols = starts(dataset, 0, 8)
        keep = dataset.scenes[0].eligible(rows, cols, 8)
        assert 0 < keep.sum() < keep.size
        assert dataset.index.geometry.iloc[0].bounds[2] < middle[0] + 1e-4

    @pytest.mark.parametrize(
        ('roi', 'message'),
        [
            ([0, 0, 1], 'which is 4 numbers'),
            ([0, 1, 1, 0], 'south below north'),
            ([0, 0, 999, 1], 'west and east in -180 to 180'),
            ([float('nan')] * 4, 'west and east'),
            ([10, 10, 11, 11], '1 scenes lie outside roi'),
            (shapely.Point(0, 0), 'holds no polygon'),
            (shapely.box(7e5, 7e6, 8e5, 8e6), 'in longitude and latitude, in degrees'),
        ],
    )
    def test_wrong(self, tmp_path: Path, roi: Any, message: str) -> None:
        path = write_scene(tmp_path / 'a.tif')
        with pytest.raises(ValueError, match=message):
            Scenes(path, roi=roi)

    @pytest.mark.parametrize(
        ('name', 'text'),
        [
            (
                'a.geojson',
                '{"type":"Polygon","coordinates":[[[NaN,NaN],[1,1],[2,2],[NaN,NaN]]]}',
            ),
            (
                'a.geojson',
                '{"type":"Polygon","coordinates":[[[-1e308,-1e308],[1e308,1e308],'
                '[-1e308,1e308],[1e308,-1e308],[-1e308,-1e308]]]}',
            ),
            ('a.geojson', '[' * 100_000),
            ('a.geojson', '{"type": "gdal_streamed_alg", "command_line": "x"}'),
            ('a.json', '{"stac_version": "1.0.0", "type": "Catalog"}'),
            ('a.gpkg', 'SQLite format 3\0'),
            (
                'a.vrt',
                '<OGRVRTDataSource><OGRVRTLayer name="x"><SrcDataSource>/vsicurl/'
                'http://127.0.0.1:{port}/r.geojson</SrcDataSource></OGRVRTLayer>'
                '</OGRVRTDataSource>',
            ),
            (
                'a.gpkg',
                '<OGRWFSDataSource><URL>http://127.0.0.1:{port}/</URL>'
                '</OGRWFSDataSource>',
            ),
        ],
    )
    def test_hostile_files(self, name: str, text: str, tmp_path: Path) -> None:
        """One error that names the argument and the file, and no server is asked."""
        path = write_scene(tmp_path / 'a.tif')
        with socket.create_server(('127.0.0.1', 0)) as server:
            server.settimeout(0.2)
            text = text.replace('{port}', str(server.getsockname()[1]))
            (tmp_path / name).write_text(text)
            with pytest.raises(ValueError, match=rf"roi='.*{name}':") as error:
                Scenes(path, roi=str(tmp_path / name))
            assert len(str(error.value)) < 600
            with pytest.raises(TimeoutError):
                server.accept()

    @pytest.mark.parametrize('name', ['roi.shp', 'roi.dbf', 'roi.shx', 'roi.prj'])
    def test_pipe(self, name: str, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        frame = geopandas.GeoDataFrame(geometry=[self.polygon()], crs='EPSG:32621')
        frame.to_file(tmp_path / 'roi.shp')
        assert len(Scenes(path, roi=str(tmp_path / 'roi.shp'))) == 1
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises((ValueError, FileNotFoundError), match=r"roi='.*roi\.shp'"):
            Scenes(path, roi=str(tmp_path / 'roi.shp'))

    def test_wrong_files(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        with pytest.raises(FileNotFoundError, match=r"roi='.*no.gpkg': no such file"):
            Scenes(path, roi=str(tmp_path / 'no.gpkg'))
        bad = tmp_path / 'bad.geojson'
        bad.write_text('{')
        with pytest.raises(ValueError, match=r'bad.geojson.*not a readable vector'):
            Scenes(path, roi=str(bad))
        empty = tmp_path / 'empty.gpkg'
        frame = geopandas.GeoDataFrame(geometry=[self.polygon()], crs='EPSG:32621')
        frame.iloc[:0].to_file(empty)
        with pytest.raises(ValueError, match=r'empty.gpkg.*holds no polygon'):
            Scenes(path, roi=str(empty))
