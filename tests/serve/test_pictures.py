"""Pictures that come in, against how the pipelines read the same files."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.decode import decode_image
from data_pipelines.limits import DecodeLimits
from transfusion.errors import SpecError
from transfusion.sample.command import read_image
from transfusion.serve.pictures import from_bytes

SIDE = 64
RAMP = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE)


def saved(image: Image.Image, kind: str) -> bytes:
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


DEEP = saved(Image.fromarray(RAMP.astype(np.uint16)), "PNG")
CLEAR = saved(Image.fromarray((RAMP / 257).astype(np.uint8)).convert("LA"), "PNG")


@pytest.mark.parametrize("data", [DEEP, CLEAR], ids=["16-bit grey", "grey with alpha"])
def test_an_upload_is_read_as_the_pipelines_read_it(data: bytes, tmp_path: Path) -> None:
    trained_on = decode_image(data, DecodeLimits())
    assert trained_on[0, 0, 0] == 0
    assert trained_on[-1, -1, 0] == 255
    assert 100 < trained_on[SIDE // 2, 0, 0] < 155
    np.testing.assert_array_equal(from_bytes(data, SIDE, param="image"), trained_on)
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", SIDE), trained_on)


def test_a_file_of_floats_without_a_range_is_refused(tmp_path: Path) -> None:
    values = np.where(RAMP == 0, np.nan, RAMP).astype(np.float32)
    (tmp_path / "a.tif").write_bytes(saved(Image.fromarray(values), "TIFF"))
    with pytest.raises(SpecError, match="NaN"):
        read_image(tmp_path / "a.tif", SIDE)
