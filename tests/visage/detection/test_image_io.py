"""The reader of photos on a corpus of hostile, damaged and merely unusual files."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from visage.detection.image_io import PhotoError, read_photo

HEIGHT, WIDTH = 40, 64


def picture() -> np.ndarray:
    """Smooth colours, another in each corner, so that any turn shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack(
        [x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) * 255 // (HEIGHT + WIDTH)], axis=2
    ).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        stream, kind, **options
    )
    return stream.getvalue()


def worst_difference(photo: np.ndarray, expected: np.ndarray) -> int:
    assert photo.shape == expected.shape
    assert photo.dtype == np.uint8
    return int(np.abs(photo.astype(int) - expected.astype(int)).max())


LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "WEBP": {"lossless": True, "quality": 20}}
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95},
    "JPEG2000": {},
}


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_the_same_picture_from_every_format(kind: str, tmp_path: Path) -> None:
    data = encoded(picture(), kind, **(LOSSLESS | LOSSY)[kind])
    path = tmp_path / "photo.jpg"  # a wrong suffix for most: the content decides
    path.write_bytes(data)
    assert worst_difference(read_photo(path), picture()) <= (0 if kind in LOSSLESS else 12)
    assert np.array_equal(read_photo(data), read_photo(path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    """What a camera stores for each orientation, from EXIF's table of where row 0 and column 0
    are."""
    upright = picture()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]

    exif = Image.Exif()
    exif[0x0112] = orientation

    assert np.array_equal(
        read_photo(encoded(np.ascontiguousarray(stored), kind, exif=exif, **LOSSLESS[kind])),
        upright,
    )


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"\xff" * 40]
)
def test_a_damaged_exif_block_counts_as_upright(exif: bytes) -> None:
    assert (
        worst_difference(
            read_photo(encoded(picture(), "JPEG", exif=exif, quality=95, subsampling=0)), picture()
        )
        < 12
    )


def test_grey_palette_bilevel_and_cmyk_become_rgb() -> None:
    grey = picture()[:, :, 0]
    assert np.array_equal(read_photo(encoded(grey, "PNG")), np.repeat(grey[:, :, None], 3, axis=2))

    palette = Image.fromarray(picture()).quantize(64)
    assert np.array_equal(read_photo(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))

    bilevel = Image.fromarray(grey > 128)
    assert set(np.unique(read_photo(encoded(bilevel, "PNG")))) == {0, 255}

    cmyk = Image.fromarray(picture()).convert("CMYK")
    assert (
        worst_difference(read_photo(encoded(cmyk, "JPEG", quality=100, subsampling=0)), picture())
        < 16
    )
    assert worst_difference(read_photo(encoded(cmyk, "TIFF")), picture()) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_its_upper_bits(kind: str) -> None:
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    photo = read_photo(encoded(Image.fromarray(values), kind))
    assert worst_difference(photo[:, :, 1], (values >> 8).astype(np.uint8)) <= 1
    assert photo[0, 0, 0] == 0
    assert photo[-1, -1, 0] == 255


def test_floating_grey_counts_to_one_or_to_255_and_nothing_else() -> None:
    ramp = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    expected = np.round(ramp * 255).astype(np.uint8)

    for scale in (1, 255):
        assert (
            worst_difference(
                read_photo(encoded(Image.fromarray(ramp * scale), "TIFF"))[:, :, 0], expected
            )
            <= 1
        )

    for strange in (ramp * 1000, ramp - 0.5, np.full_like(ramp, np.nan)):
        with pytest.raises(PhotoError, match="floating-point"):
            read_photo(encoded(Image.fromarray(strange), "TIFF"))


def test_transparency_is_blended_with_white() -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, : WIDTH // 2] = 255
    photo = read_photo(encoded(np.dstack([picture(), alpha]), "PNG"))
    assert np.array_equal(photo[:, : WIDTH // 2], picture()[:, : WIDTH // 2])
    assert (photo[:, WIDTH // 2 :] == 255).all()

    half = np.dstack([np.zeros((4, 4), np.uint8), np.full((4, 4), 128, np.uint8)])
    assert abs(int(read_photo(encoded(half, "PNG"))[0, 0, 0]) - 127) <= 1

    keyed = Image.new("P", (4, 4), 1)
    keyed.putpalette([10, 20, 30, 40, 50, 60])
    keyed.putpixel((0, 0), 0)
    photo = read_photo(encoded(keyed, "PNG", transparency=b"\x00\xff"))
    assert photo[0, 0].tolist() == [255, 255, 255]
    assert photo[1, 1].tolist() == [40, 50, 60]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_picture_of_several(kind: str) -> None:
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ((200, 0, 0), (0, 0, 200)))
    photo = read_photo(encoded(first, kind, save_all=True, append_images=[second]))
    assert worst_difference(photo, np.asarray(first)) <= 3


def test_one_pixel_is_a_photo() -> None:
    assert read_photo(encoded(np.full((1, 1, 3), 7, np.uint8), "PNG")).tolist() == [[[7, 7, 7]]]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0")
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


HOSTILE = {
    "empty": (b"", "empty"),
    "zeros": (bytes(5000), "not a picture"),
    "text": (b"<html><body>404 Not Found</body></html>", "not a picture"),
    "script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a picture"),
    "vector": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not a picture"),
    "large header": (png_header(30_000, 30_000), "too large"),
    "large enough": (png_header(12_000, 12_000), "12000 x 12000 px"),
    "no pixels": (png_header(100, 100), "cannot be decoded"),
    "zero width": (png_header(0, 100), ""),
    "only a header": (encoded(picture(), "JPEG")[:20], ""),
    "32-bit grey": (encoded(Image.fromarray(np.full((4, 4), 10**6, np.int32)), "TIFF"), "32-bit"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_photo_is_refused_with_the_reason(
    name: str, recwarn: pytest.WarningsRecorder
) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(PhotoError) as caught:
        read_photo(data)
    assert reason in str(caught.value)
    assert not recwarn.list
    # No memory address: rejects.csv must not change from run to run.
    assert "0x" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nobody.jpg", tmp_path):
        with pytest.raises(PhotoError, match="cannot be read"):
            read_photo(path)


def test_the_limit_of_pixels_is_the_callers() -> None:
    data = encoded(picture(), "PNG")
    assert read_photo(data, HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(PhotoError, match="64 x 40 px"):
        read_photo(data, HEIGHT * WIDTH - 1)


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "progressive JPEG"]
)
def test_a_truncated_file_gives_the_complete_picture_or_an_error(kind: str) -> None:
    """Cut anywhere: never a picture that is partly made up."""
    noise = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = encoded(noise, kind.split()[-1], **({"progressive": True} if " " in kind else {}))
    complete = read_photo(data)

    refused = 0
    for length in [
        *range(0, len(data), max(1, len(data) // 60)),
        len(data) - 3,
        len(data) - 2,
        len(data) - 1,
    ]:
        try:
            assert np.array_equal(read_photo(data[:length]), complete), length
        except PhotoError:
            refused += 1

    assert refused >= 55


@given(
    st.binary(max_size=200),
    st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF"]),
    st.floats(0, 1),
)
def test_random_damage_gives_a_picture_or_a_reason_and_no_warning(
    noise: bytes, kind: str, place: float
) -> None:
    data = encoded(picture(), kind)
    start = int(place * len(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = photo_or_reason(data[:start] + noise + data[start + len(noise) :])
    assert isinstance(result, str) or (result.dtype == np.uint8 and result.shape[2] == 3)


def photo_or_reason(data: bytes) -> np.ndarray | str:
    try:
        return read_photo(data, 10**6)
    except PhotoError as error:
        return str(error)
