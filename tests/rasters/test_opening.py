# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""GDAL opens regular files of a short list of formats, with the files beside them."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from tests.data.geotiff.data import ORIGIN, write_scene
from tests.data.hostile.data import PYTHON, vrt
from torchgeo_cmid.datasets import Patch, Scenes
from torchgeo_cmid.rasters import opening
from torchgeo_cmid.rasters.timeouts import LIMITS

WHOLE = Patch(0, 0, 0, 64)

#: What TorchGeo's command sets.
STOCK = 'GDAL_DISABLE_READDIR_ON_OPEN'


@pytest.fixture(params=['plain', 'stock'])
def environment(request: pytest.FixtureRequest) -> Iterator[str]:
    """The environment of plain Python, and that of TorchGeo's command."""
    patch = pytest.MonkeyPatch()
    if request.param == 'stock':
        patch.setenv(STOCK, 'EMPTY_DIR')
    else:
        patch.delenv(STOCK, raising=False)
    yield request.param
    patch.undo()


def masked(path: Path, **arguments: Any) -> np.ndarray:
    """Write a scene with a mask beside it."""
    write_scene(path, **arguments)
    mask = np.random.default_rng(0).random((64, 64)) < 0.5
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, 'r+') as file:
        file.write_mask(mask)
    assert path.with_name(f'{path.name}.msk').exists()
    return mask


def with_world_file(path: Path, x: int = 700_000) -> Path:
    """Write a scene whose place is in a file beside it."""
    with rasterio.open(write_scene(path)) as file:
        image, profile = file.read(), file.profile
    del profile['transform']
    with rasterio.open(path, 'w', **profile) as file:
        file.write(image)
    world = f'30\n0\n0\n-30\n{x + 15}\n7199985\n'
    path.with_suffix('.tfw').write_text(world)
    return path


def valid(paths: Any, **arguments: Any) -> np.ndarray:
    return Scenes(paths, **arguments)[WHOLE]['valid'][0].numpy()


def in_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def in_process(function: Callable[[], Any]) -> Any:
    with multiprocessing.get_context('fork').Pool(1) as pool:
        return pool.apply(function)


class Read:
    """Reads the valid pixels of a file, in whatever process."""

    def __init__(self, dataset: Scenes) -> None:
        """Keep the data set."""
        self.dataset = dataset

    def __call__(self) -> np.ndarray:
        return self.dataset[WHOLE]['valid'][0].numpy()


class TestSideFiles:
    @pytest.mark.parametrize('cached', [False, True])
    def test_mask(self, environment: str, cached: bool, tmp_path: Path) -> None:
        mask = masked(tmp_path / 'a.tif')
        arguments = {'cache': str(tmp_path / 'cache')} if cached else {}
        for _ in range(2):
            dataset = Scenes(tmp_path / 'a.tif', **arguments)
            for read in (lambda f: f(), in_thread, in_process):
                np.testing.assert_array_equal(read(Read(dataset)), mask)

    def test_mask_in_another_case(self, environment: str, tmp_path: Path) -> None:
        mask = masked(tmp_path / 'a.tif')
        (tmp_path / 'a.tif.msk').rename(tmp_path / 'a.TIF.MSK')
        np.testing.assert_array_equal(valid(tmp_path / 'a.tif'), mask)

    def test_metadata(self, environment: str, tmp_path: Path) -> None:
        """Of .aux.xml: no data, place and coordinate reference system."""
        write_scene(tmp_path / 'a.tif', fill=0.25, nodata=0)
        with rasterio.open(tmp_path / 'a.tif') as file:
            image, profile = file.read(), file.profile
        for name in ('transform', 'nodata', 'crs', 'tiled', 'interleave', 'dtype'):
            profile.pop(name, None)
        profile.update(driver='PNG', dtype='uint16')
        with rasterio.open(tmp_path / 'a.png', 'w', **profile) as file:
            file.write(image)
        with rasterio.open(tmp_path / 'a.tif') as file:
            wkt, place = (
                file.crs.to_wkt(),
                ', '.join(map(str, file.transform.to_gdal())),
            )
        place = '700000, 30, 0, 7200000, 0, -30'
        bands = ''.join(
            f'<PAMRasterBand band="{i}"><NoDataValue>0</NoDataValue></PAMRasterBand>'
            for i in (1, 2, 3)
        )
        (tmp_path / 'a.png.aux.xml').write_text(
            f'<PAMDataset><SRS>{wkt}</SRS><GeoTransform>{place}</GeoTransform>{bands}'
            '</PAMDataset>'
        )
        dataset = Scenes(tmp_path / 'a.png')
        assert dataset.scenes[0].transform.c == ORIGIN[0]
        assert dataset[WHOLE]['valid'].float().mean() == 0.75

    def test_world_file(self, environment: str, tmp_path: Path) -> None:
        path = with_world_file(tmp_path / 'a.tif')
        scene = Scenes(path).scenes[0]
        assert scene.transform[:6] == (30, 0, 7e5, 0, -30, 7.2e6)

    def test_mask_of_the_source_of_a_vrt(
        self, environment: str, tmp_path: Path
    ) -> None:
        """A VRT opens its sources when it reads them."""
        mask = masked(tmp_path / 'a.tif', bands=1)
        (tmp_path / 'a.vrt').write_text(
            """<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32621</SRS>
            <GeoTransform>700000, 30, 0, 7200000, 0, -30</GeoTransform>
            <MaskBand><VRTRasterBand dataType="Byte"><SimpleSource>
            <SourceFilename relativeToVRT="1">a.tif</SourceFilename>
            <SourceBand>mask,1</SourceBand></SimpleSource></VRTRasterBand></MaskBand>
            <VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
            <SourceFilename relativeToVRT="1">a.tif</SourceFilename></SimpleSource>
            </VRTRasterBand></VRTDataset>"""
        )
        dataset = Scenes(tmp_path / 'a.vrt')
        for read in (lambda f: f(), in_thread, in_process):
            np.testing.assert_array_equal(read(Read(dataset)), mask)

    def test_mask_in_another_grid(self, environment: str, tmp_path: Path) -> None:
        masked(tmp_path / 'S_B1.tif', bands=1)
        write_scene(tmp_path / 'S_B2.tif', bands=1, res=15, size=128)
        regex = r'S_(?P<band>B\d)\.tif'
        patch = Scenes(tmp_path, filename_regex=regex)[Patch(0, 0, 0, 128)]
        assert 0.4 < patch['valid'].float().mean() < 0.6

    @pytest.mark.parametrize('cached', [False, True])
    @pytest.mark.parametrize(
        ('damage', 'message'),
        [
            ('cut', 'truncated'),
            ('short', 'damaged or no mask'),
            ('empty', 'damaged or no mask'),
            ('text', 'damaged or no mask'),
            ('wms', 'damaged or no mask'),
            ('size', r'has 16 x 16 pixels instead of 64 x 64'),
            ('flags', r'says nothing of bands \[1, 2, 3\]'),
            ('bytes', r'a\.tif\.msk is unreadable'),
        ],
    )
    def test_unusable_mask(
        self, environment: str, cached: bool, damage: str, message: str, tmp_path: Path
    ) -> None:
        masked(tmp_path / 'a.tif')
        mask = tmp_path / 'a.tif.msk'
        content = mask.read_bytes()
        if damage == 'cut':
            mask.write_bytes(content[:-100])
        elif damage == 'short':
            mask.write_bytes(content[:50])
        elif damage == 'bytes':
            mask.write_bytes(content[:-60] + bytes(60))
        elif damage in ('size', 'flags'):
            size = 16 if damage == 'size' else 64
            write_scene(tmp_path / 'b.tif', bands=1, size=size, dtype='uint8')
            (tmp_path / 'b.tif').rename(mask)
        else:
            mask.write_text({'empty': '', 'text': 'no', 'wms': '<GDAL_WMS>'}[damage])
        arguments = {'cache': str(tmp_path / 'cache')} if cached else {}
        with pytest.raises(OSError, match=message) as error:
            Scenes(tmp_path / 'a.tif', **arguments)[WHOLE]
        assert str(mask) in str(error.value)

    @pytest.mark.parametrize('form', ['/vsizip/{0}/in/a.tif', 'zip://{0}!in/a.tif'])
    @pytest.mark.parametrize('damage', [None, 'empty', 'size'])
    def test_mask_in_an_archive(
        self, environment: str, damage: str | None, form: str, tmp_path: Path
    ) -> None:
        mask = masked(tmp_path / 'a.tif')
        content = (tmp_path / 'a.tif.msk').read_bytes()
        if damage == 'size':
            write_scene(tmp_path / 'b.tif', bands=1, size=16, dtype='uint8')
            content = (tmp_path / 'b.tif').read_bytes()
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
            file.write(tmp_path / 'a.tif', 'in/a.tif')
            file.writestr('in/a.tif.msk', b'' if damage == 'empty' else content)
        path = form.format(tmp_path / 'a.zip')
        if damage is None:
            np.testing.assert_array_equal(valid(path), mask)
        else:
            with pytest.raises(
                OSError, match=r'a\.zip/in/a\.tif\.msk: the mask beside'
            ):
                Scenes(path)

    def test_mask_that_is_damaged_before_a_second_start(self, tmp_path: Path) -> None:
        """What is known of a file does not keep its mask from being looked at."""
        masked(tmp_path / 'a.tif')
        cache = str(tmp_path / 'cache')
        Scenes(tmp_path / 'a.tif', cache=cache)[WHOLE]
        (tmp_path / 'a.tif.msk').write_bytes(b'')
        with pytest.raises(OSError, match=r'a\.tif\.msk: the mask beside'):
            Scenes(tmp_path / 'a.tif', cache=cache)[WHOLE]

    @pytest.mark.parametrize(
        ('name', 'text', 'message'),
        [
            ('a.tif.aux.xml', '<PAMDataset><PAMRasterBand', 'are damaged'),
            ('a.tif.aux.xml', '', 'are damaged'),
            ('a.tif.aux.xml', '<!DOCTYPE x [<!ENTITY a "b">]><a/>', 'DOCTYPE'),
            (
                'a.tif.aux.xml',
                '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
                '/vsicurl/http://127.0.0.1:1/a.tif</MDI></Metadata></PAMDataset>',
                'leads to .*not followed',
            ),
            ('a.tif.ovr', '<GDAL_WMS/>', 'overviews .* are damaged'),
        ],
    )
    def test_unusable_metadata(
        self, environment: str, name: str, text: str, message: str, tmp_path: Path
    ) -> None:
        write_scene(tmp_path / 'a.tif')
        (tmp_path / name).write_text(text)
        with pytest.raises(OSError, match=message) as error:
            Scenes(tmp_path / 'a.tif')
        assert str(tmp_path / name) in str(error.value)

    def test_good_metadata_and_overviews_pass(
        self, environment: str, tmp_path: Path
    ) -> None:
        path = write_scene(tmp_path / 'a.tif', size=128)
        (tmp_path / 'a.tif.aux.xml').write_bytes(
            '<PAMDataset><Metadata><MDI key="site">é https://x.org</MDI></Metadata>'
            '</PAMDataset>'.encode('latin-1')
        )
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, 'r+') as file:
            file.build_overviews([2])
        assert (tmp_path / 'a.tif.ovr').exists()
        assert Scenes(path)[WHOLE]['valid'].all()


ODD = {
    'pipe': os.mkfifo,
    'socket': lambda path: socket.socket(socket.AF_UNIX).bind(path.name),
    'link to a device': lambda path: path.symlink_to('/dev/zero'),
    'link to a pipe': lambda path: [os.mkfifo(f'{path}_'), path.symlink_to(f'{path}_')],
}


class TestRegularFiles:
    @pytest.mark.parametrize('kind', ODD)
    @pytest.mark.parametrize(
        'name',
        [
            *('a.tif', 'a.tif.msk', 'a.tif.aux.xml', 'a.tif.ovr', 'a.tfw', 'a.IMD'),
            *('a.TIF.MSK', 'a_RPC.TXT', 'METADATA.XML', 'b.tif', 'a.jp2', 'a.vrt'),
        ],
    )
    def test_none_hangs(
        self, kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)  # names of sockets must be short
        path = write_scene(tmp_path / 'a.tif')
        paths = [path]
        if name == 'b.tif':
            rasterio.shutil.copy(path, tmp_path / 'c.vrt', driver='VRT')
            text = (tmp_path / 'c.vrt').read_text().replace('a.tif', 'b.tif')
            (tmp_path / 'c.vrt').write_text(text)
            paths = [tmp_path / 'c.vrt']
        elif name in ('a.jp2', 'a.vrt'):
            paths = [tmp_path / name]
        if name == 'a.tif':
            path.unlink()
        ODD[kind](tmp_path / name)
        with pytest.raises(OSError, match='pipe, socket or device') as error:
            Scenes(paths)
        assert name in str(error.value)

    @pytest.mark.parametrize('name', ['note.sock', 'b.tif.msk', 'other.tif'])
    def test_what_is_not_opened_is_no_fault(self, name: str, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        os.mkfifo(tmp_path / name)
        assert Scenes(path)[WHOLE]['valid'].all()

    @pytest.mark.parametrize(
        'form', ['/vsizip/{0}/a.tif', '/vsigzip/{0}', 'zip://{0}!a.tif', 'file://{0}']
    )
    def test_in_a_path_of_gdal(self, form: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / 'a.zip')
        with pytest.raises(OSError, match='pipe, socket or device'):
            Scenes(form.format(tmp_path / 'a.zip'))

    def test_in_mid_run(self, tmp_path: Path) -> None:
        """Before each open, in processes that open anew too."""
        path = write_scene(tmp_path / 'a.tif')
        rasterio.shutil.copy(path, tmp_path / 'a.vrt', driver='VRT')
        dataset = Scenes(tmp_path / 'a.vrt')
        dataset[WHOLE]
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(OSError, match=r"a\.tif': a pipe, socket or device"):
            dataset[WHOLE]

    def test_folder_that_is_a_raster(self, tmp_path: Path) -> None:
        folder = tmp_path / 'x.zarr'
        write_zarr(folder)
        assert Scenes(folder).scenes[0].path == str(folder)
        os.mkfifo(folder / 'x' / '9.9')
        with pytest.raises(OSError, match=r'9\.9.*in the folder of a raster'):
            Scenes(folder)


def write_zarr(folder: Path) -> None:
    path = write_scene(folder.with_suffix('.tif'), bands=1)
    with rasterio.open(path) as file:
        image, profile = file.read(), file.profile
    path.unlink()
    for name in ('tiled', 'interleave', 'nodata', 'blockxsize', 'blockysize'):
        profile.pop(name, None)
    try:
        with rasterio.open(folder, 'w', **profile | {'driver': 'Zarr'}) as file:
            file.write(image)
    except rasterio.errors.RasterioError as error:
        pytest.skip(f"no Zarr in this wheel of rasterio's: {error}")


class TestFormats:
    @pytest.mark.parametrize(
        'text',
        [
            '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:{port}/x'
            '</ServerUrl></Service></GDAL_WMS>',
            '<WCS_GDAL><ServiceURL>http://127.0.0.1:{port}/?</ServiceURL></WCS_GDAL>',
            '<OGRWFSDataSource><URL>http://127.0.0.1:{port}/</URL></OGRWFSDataSource>',
            '{{"stac_version": "1.0.0", "href": "http://127.0.0.1:{port}/a.tif"}}',
        ],
    )
    @pytest.mark.parametrize('name', ['a.xml', 'a.jp2', 'a.vrt', 'a.png', 'source.tif'])
    def test_nothing_asks_a_server(self, name: str, text: str, tmp_path: Path) -> None:
        with socket.create_server(('127.0.0.1', 0)) as server:
            server.settimeout(0.2)
            text = text.format(port=server.getsockname()[1])
            path = tmp_path / name
            path.write_text(text)
            if name == 'source.tif':
                vrt(name)(tmp_path / 'a.vrt')
                path = tmp_path / 'a.vrt'
            for paths in (path, str(tmp_path / '*')):
                with pytest.raises((OSError, ValueError), match=re.escape(str(path))):
                    Scenes(paths)
            with pytest.raises(TimeoutError):
                server.accept()

    @pytest.mark.parametrize(
        ('source', 'message'),
        [
            ('/vsicurl/http://127.0.0.1:1/a.tif', 'leads to'),
            ('http://127.0.0.1:1/a.tif', 'leads to'),
            ('/vsizip//vsicurl/http://127.0.0.1:1/a.zip/a.tif', 'leads to'),
            ('/vsimem/a.tif', 'leads to'),
            ('vrt://a.tif', 'leads to'),
            ('<![CDATA[<VRTDataset/>]]>', 'leads to'),
            ('HDF5:"http://127.0.0.1:1/a.h5"://x', 'leads to'),
            ('/etc/passwd', 'source cannot be used'),
            ('/dev/zero', 'pipe, socket or device'),
            ('a<!-- -->.tif', 'comment'),
            ('nowhere.tif', 'nowhere.tif.*no such file'),
            ('inner.vrt', 'inner.vrt.*leads to'),
            ('bad.vrt', 'circle'),
        ],
    )
    def test_vrt_of_local_files_only(
        self, source: str, message: str, tmp_path: Path
    ) -> None:
        vrt('/vsicurl/http://127.0.0.1:1/a.tif')(tmp_path / 'inner.vrt')
        vrt(source)(tmp_path / 'bad.vrt')
        with pytest.raises(OSError, match=f'bad.vrt.*{message}|{message}'):
            Scenes(tmp_path / 'bad.vrt')

    @pytest.mark.parametrize(
        ('before', 'after', 'message'),
        [
            ('<VRTDataset', '<!DOCTYPE x [<!ENTITY e "a">]><VRTDataset', 'DOCTYPE'),
            (
                '<SimpleSource>',
                '<SimpleSource SourceFilename="/vsicurl/x">',
                'leads to',
            ),
            ('SourceFilename', 'sourcefilename', 'no such file'),
            ('</VRTDataset>', '', 'XML is damaged'),
            ('</SRS>', '</SRS><OverviewList>/vsicurl/x</OverviewList>', 'leads to'),
        ],
    )
    def test_vrt_read_as_gdal_reads_it(
        self, before: str, after: str, message: str, tmp_path: Path
    ) -> None:
        vrt('nowhere.tif')(tmp_path / 'bad.vrt')
        text = (tmp_path / 'bad.vrt').read_text()
        assert before in text
        (tmp_path / 'bad.vrt').write_text(text.replace(before, after))
        with pytest.raises(OSError, match=f'bad.vrt.*{message}'):
            Scenes(tmp_path / 'bad.vrt')

    def test_vrt_that_runs_code(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'a.tif')
        vrt('a.tif', PYTHON)(tmp_path / 'a.vrt')
        with pytest.raises(OSError, match=r"a\.vrt: has a function of pixels in 'Pyth"):
            Scenes(tmp_path / 'a.vrt')

    @pytest.mark.parametrize('linked', [False, True])
    def test_good_vrt(self, linked: bool, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'in' / 'a.tif')
        vrt('a.tif')(tmp_path / 'in' / 'inner.vrt')
        vrt('inner.vrt')(tmp_path / 'in' / 'a.vrt')
        name = tmp_path / 'in' / 'a.vrt'
        if linked:  # sources are relative to where the link leads
            (tmp_path / 'link.vrt').symlink_to(name)
            name = tmp_path / 'link.vrt'
        image = Scenes(name)[WHOLE]['image']
        assert image.equal(Scenes(path, bands=[1])[WHOLE]['image'])

    def test_more_formats_by_name(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        rasterio.shutil.copy(path, tmp_path / 'a.img', driver='HFA')
        with pytest.raises(OSError, match=r'a\.img: not a readable raster .* drivers'):
            Scenes(tmp_path / 'a.img')
        image = Scenes(tmp_path / 'a.img', drivers=['HFA'])[WHOLE]['image']
        assert image.equal(Scenes(path)[WHOLE]['image'])
        with pytest.raises(ValueError, match=r"drivers=\['hfx'\]: .* no driver 'hfx'"):
            Scenes(path, drivers=['hfx'])
        vrt('/vsizip/a.zip/a.tif')(tmp_path / 'a.vrt')
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
            file.write(path, 'a.tif')
        text = (
            (tmp_path / 'a.vrt').read_text().replace('/vsizip/', f'/vsizip/{tmp_path}/')
        )
        (tmp_path / 'a.vrt').write_text(text)
        with pytest.raises(OSError, match="drivers must name 'VRT'"):
            Scenes(tmp_path / 'a.vrt')
        image = Scenes(tmp_path / 'a.vrt', drivers=['VRT'])[WHOLE]['image']
        assert image.equal(Scenes(path, bands=[1])[WHOLE]['image'])


class TestServers:
    def test_that_never_answers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Named outright it is asked, but not for ever."""
        monkeypatch.setenv('GDAL_HTTP_LOW_SPEED_TIME', '1')
        monkeypatch.setenv('GDAL_HTTP_TIMEOUT', '2')
        path = write_scene(tmp_path / 'a.tif')
        with socket.create_server(('127.0.0.1', 0), backlog=64) as server:
            url = f'/vsicurl/http://127.0.0.1:{server.getsockname()[1]}'
            start = time.monotonic()
            with pytest.raises(OSError, match=r'a\.tif: not a readable raster'):
                Scenes(f'{url}/a.tif')
            with pytest.raises(ValueError, match=r'a\.geojson.*not a readable vector'):
                Scenes(path, roi=f'{url}/a.geojson')
        assert time.monotonic() - start < 60

    def test_limits_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in LIMITS:
            monkeypatch.delenv(name, raising=False)
        options = opening.environment().options
        for name in LIMITS:
            assert 0 < int(options[name]) <= 60
        assert options['GDAL_VRT_ENABLE_PYTHON'] == 'NO'


PROBE = """
import os, sys, warnings
import lightning.pytorch as L
class Probe(L.Callback):
    def on_train_batch_end(self, trainer, task, outputs, batch, number):
        shares = batch['valid'].float().mean(dim=(1, 2, 3)).tolist()
        print('PROBE', [round(x, 3) for x in shares], flush=True)
if __name__ == '__main__':
    warnings.simplefilter('ignore')
    import torchgeo.main
    torchgeo.main.main(sys.argv[1:])
    assert os.environ['GDAL_DISABLE_READDIR_ON_OPEN'] == 'EMPTY_DIR'
"""


class TestStockCommand:
    @pytest.mark.parametrize('workers', [0, 2])
    def test_side_files_count(self, workers: int, tmp_path: Path) -> None:
        mask = masked(tmp_path / 'data' / 'a.tif')
        with_world_file(tmp_path / 'data' / 'b.tif', x=800_000)
        result = self.fit(tmp_path, workers)
        assert result.returncode == 0, result.stderr[-2000:]
        shares = {
            share
            for line in re.findall(r'PROBE \[(.*)\]', result.stdout)
            for share in line.split(', ')
        }
        assert shares == {f'{round(float(mask.mean()), 3)}', '1.0'}

    def test_unusable_mask(self, tmp_path: Path) -> None:
        masked(tmp_path / 'data' / 'a.tif')
        (tmp_path / 'data' / 'a.tif.msk').write_bytes(b'')
        result = self.fit(tmp_path, 0)
        assert result.returncode == 1
        assert f'{tmp_path}/data/a.tif.msk: the mask beside' in result.stderr

    def fit(self, folder: Path, workers: int) -> subprocess.CompletedProcess[str]:
        (folder / 'probe.py').write_text(PROBE)
        arguments = {
            'model': 'cmid',
            'model.model': 'test_resnet',
            'model.size': 64,
            'model.mask_patch_size': 32,
            'model.queue_size': 16,
            'model.hidden_dim': 16,
            'model.num_prototypes': 8,
            'data': 'RasterFolderDataModule',
            'data.paths': folder / 'data',
            'data.patch_size': 64,
            'data.length': 16,
            'data.batch_size': 4,
            'data.num_workers': workers,
            'data.val_split': 0,
            'trainer.accelerator': 'cpu',
            'trainer.max_epochs': 1,
            'trainer.logger': 'false',
            'trainer.enable_checkpointing': 'false',
            'trainer.default_root_dir': folder,
            'trainer.callbacks+': 'probe.Probe',
        }
        return subprocess.run(
            [
                *(sys.executable, 'probe.py', 'fit'),
                *(f'--{name}={value}' for name, value in arguments.items()),
            ],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=300,
            env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
            check=False,
        )
