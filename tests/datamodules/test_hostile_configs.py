# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Arguments that make no sense give one clear error that names them."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.data.geotiff.data import generate
from tests.data.hostile.data import TRAP, Trap
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.datasets import Sensor

NAN, INFINITE = float('nan'), float('inf')

#: Arguments, and what the error says.
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({'paths': ''}, r"paths='': no such file"),
    ({'paths': []}, 'paths is empty'),
    ({'paths': ['{folder}/none']}, r"paths='.*none': no such file"),
    ({'paths': '{folder}/*.jp2'}, r"paths='.*\.jp2': the glob matches no file"),
    ({'paths': '/dev/null'}, "'/dev/null': a pipe, socket or device"),
    ({'paths': '/vsistdin/'}, "paths='/vsistdin/': standard input"),
    ({'paths': '/vsimem/none.tif'}, '/vsimem/none.tif: not a readable raster'),
    ({'paths': '/vsizip/none.zip'}, "paths='/vsizip/none.zip': no such file"),
    ({'paths': 'nowhere://a/b.tif'}, 'nowhere://a/b.tif: not a readable raster'),
    ({'bands': []}, 'bands is empty'),
    ({'bands': [0]}, 'no band 0; the file has'),
    ({'bands': [-1]}, 'no band -1; the file has'),
    ({'bands': ['nir']}, "no band 'nir'; the file has"),
    ({'bands': [1, 1]}, r'bands=\[1, 1\] names a band twice'),
    ({'all_bands': []}, 'all_bands is empty'),
    ({'all_bands': ['a']}, 'has 3 bands, but all_bands names 1'),
    ({'filename_regex': '('}, r"filename_regex='\(' is no regular expression"),
    ({'filename_regex': '.*'}, r"filename_regex='\.\*' has no group named band"),
    ({'filename_regex': 'x(?P<band>y)'}, 'filename_regex=.* matches none of 2'),
    ({'sensors': []}, 'sensors is empty'),
    ({'sensors': [Sensor()], 'nodata': 0.0}, 'sensors have .*nodata.* of their own'),
    ({'sensors': [Sensor('{folder}', [1]), Sensor('{folder}')]}, 'has 3 bands, but'),
    ({'roi': '{folder}/none.gpkg'}, r"roi='.*none\.gpkg': no such file"),
    ({'roi': '{folder}/scene_0.tif'}, r"roi='.*scene_0\.tif': not a readable vector"),
    ({'roi': '{folder}/roi.pkl'}, r"roi='.*roi\.pkl': not a readable vector"),
    ({'roi': []}, r'roi=\[\] must be .* 4 numbers'),
    ({'roi': [0.0, 0.0, NAN, 1.0]}, r'roi=.* west and east in -180 to 180'),
    ({'roi': [0.0, 1.0, 1.0, 1.0]}, r'roi=.* south below north'),
    ({'roi': [0.0, 0.0, 1.0, 1.0]}, 'no scene is left .*2 scenes lie outside roi'),
    ({'min_valid': 1.5}, r'min_valid=1\.5 must be'),
    ({'min_valid': NAN}, 'min_valid=nan must be'),
    ({'val_split': 1.0}, r'val_split=1\.0 must be'),
    ({'val_split': NAN}, 'val_split=nan must be'),
    ({'patch_size': 0}, 'patch_size=0 must be a whole number, at least 1'),
    ({'patch_size': 10**12}, 'patch_size=1000000000000 is larger than every scene'),
    ({'batch_size': -1}, 'batch_size=-1 must be a whole number, at least 1'),
    ({'length': 0}, 'length=0 must be a whole number'),
    ({'length': -5}, 'length=-5 must be a whole number'),
    ({'num_workers': -1}, 'num_workers=-1 must be a whole number, at least 0'),
    ({'mean': [0.0] * 3}, 'mean and std go together'),
    ({'mean': [NAN] * 3, 'std': [1.0] * 3}, 'mean=.*must be finite'),
    ({'mean': [0.0] * 3, 'std': [INFINITE] * 3}, 'std=.*must be positive'),
    ({'mean': [0.0] * 3, 'std': [NAN] * 3}, 'std=.*must be positive'),
]


def place(value: Any, folder: Path) -> Any:
    """Put the folder of the scenes in."""
    if isinstance(value, str):
        return value.replace('{folder}', str(folder))
    if isinstance(value, list):
        return [place(item, folder) for item in value]
    if isinstance(value, Sensor):
        return Sensor(place(value.paths, folder), value.bands)
    return value


@pytest.mark.parametrize(
    ('arguments', 'message'), CONFIGS, ids=[str(arguments) for arguments, _ in CONFIGS]
)
def test_one_clear_error(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    generate(tmp_path, 2)
    (tmp_path / 'roi.pkl').write_bytes(pickle.dumps(Trap(tmp_path)))
    defaults = {'paths': str(tmp_path), 'patch_size': 16, 'length': 8, 'batch_size': 8}
    arguments = defaults | {k: place(v, tmp_path) for k, v in arguments.items()}
    with pytest.raises((OSError, ValueError), match=message) as error:
        RasterFolderDataModule(**arguments).setup('fit')
    assert len(str(error.value)) < 600
    assert not (tmp_path / TRAP).exists()
