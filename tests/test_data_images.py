"""Reading images: against OpenCV and Pillow's own EXIF rotation, and every kind of damage."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from protomask.data import Folder, images
from protomask.data.images import list_images, read_image
from protomask.errors import DataError, InputError


def picture(height: int = 40, width: int = 56) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=2).astype(np.uint8)


def jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert np.array_equal(read, picture())
    assert np.array_equal(read_image(str(tmp_path / "a.png")), read)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    Image.fromarray(picture()).save(path, exif=exif, **options)
    with Image.open(path) as image:
        wanted = np.array(ImageOps.exif_transpose(image))
    read = read_image(path)
    assert np.array_equal(read, wanted)
    assert read.shape == ((40, 56, 3) if orientation < 5 else (56, 40, 3))
    if suffix == "jpg":  # a second library, with a decoder of its own
        other = cv2.imread(str(path))[..., ::-1].astype(int)
        assert other.shape == read.shape
        assert np.abs(other - read).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_raw_tiffs_stand_upright(orientation: int, dtype: type, tmp_path: Path) -> None:
    grey = (np.arange(12).reshape(3, 4) * 20).astype(dtype)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey).save(tmp_path / "raw.tif", compression=None, exif=exif)
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "same.png", exif=exif)
    wanted = read_image(tmp_path / "same.png")
    assert wanted.shape[:2] == ((4, 3) if orientation > 4 else (3, 4))
    assert np.array_equal(read_image(tmp_path / "raw.tif", (0, 255) if dtype is np.uint16 else None), wanted)


def test_a_damaged_exif_block_leaves_the_image_as_it_lies(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense")
    assert read_image(tmp_path / "a.jpg").shape == (40, 56, 3)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(picture()[..., 0]).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert np.array_equal(read, np.repeat(picture()[..., :1], 3, axis=2))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([picture(), np.zeros((40, 56), np.uint8)])).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), picture())


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((2, 1), 1)
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    wanted = np.full((2, 3, 3), (10, 20, 30), np.uint8)
    wanted[1, 2] = 200, 100, 50
    assert np.array_equal(read_image(tmp_path / "a.png"), wanted)


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 257, 32896, 65535]], np.uint16))
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
def test_fewer_bits_in_a_file_of_sixteen_are_shown_over_the_full_range(tmp_path: Path, bits: int, suffix: str) -> None:
    most = 2**bits - 1
    ramp = np.linspace(0, most, 600).round().astype(np.uint16).reshape(20, 30)
    path = tmp_path / f"a.{suffix}"
    np.save(path, ramp) if suffix == "npy" else cv2.imwrite(str(path), ramp)
    read = read_image(path)
    assert read.shape == (20, 30, 3)
    assert np.array_equal(read, np.repeat(np.round(ramp * (255 / most)).astype(np.uint8)[..., None], 3, axis=2))
    assert (read.min(), read.max()) == (0, 255)


def test_one_level_more_is_of_the_next_depth(tmp_path: Path) -> None:
    for most, shown in ((255, 255), (256, 64), (1023, 255), (1024, 64), (4095, 255), (4096, 64), (16384, 64)):
        cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, most]], np.uint16))
        assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, shown]


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_a_window_scales_all_images_alike(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    values = np.array([[0, 1000, 2000, 3000, 4000]], np.uint16)
    np.save(path, values) if suffix == "npy" else cv2.imwrite(str(path), values)
    assert read_image(path, (1000, 3000))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    Image.fromarray(picture()).save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png", (100, 200)), picture())  # 8 bits are what they are


@pytest.mark.parametrize("window", [(5, 5), (7, 5), (0, float("nan")), (0,), (0, float("inf")), 5, ("a", "b")])
def test_windows_that_are_none(tmp_path: Path, window: object) -> None:
    with pytest.raises(InputError, match="window: expected \\(low, high\\)"):
        read_image(tmp_path / "a.png", window)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[0, 7, 255]], np.uint8), [0, 7, 255]),
        (np.array([[0, 0.5, 1]], np.float64), [0, 128, 255]),
        (np.array([[0, 0.25, 1]], np.float16), [0, 64, 255]),
        (np.array([[0, 0.25, 1]], ">f4"), [0, 64, 255]),
        (np.array([[0, 2048, 4095]], np.int64), [0, 128, 255]),
        (np.array([[0, 257, 65535]], ">u2"), [0, 1, 255]),
    ],
)
def test_arrays_of_numbers(tmp_path: Path, values: np.ndarray, shown: list[int]) -> None:
    for array in (values, values[..., None], np.asfortranarray(values)):
        np.save(tmp_path / "a.NPY", array)
        (tmp_path / "a.NPY.npy").rename(tmp_path / "a.NPY")
        read = read_image(tmp_path / "a.NPY")
        assert read.dtype == np.uint8
        assert read.flags.writeable
        assert read.tolist() == [[[v] * 3 for v in shown]]


def test_arrays_of_colours_and_signed_values_in_a_window(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", picture())
    assert np.array_equal(read_image(tmp_path / "a.npy"), picture())
    np.save(tmp_path / "a.npy", picture() / np.float32(255))
    assert np.array_equal(read_image(tmp_path / "a.npy"), picture())
    for dtype in (np.int16, np.float32):  # Hounsfield units
        np.save(tmp_path / "a.npy", np.array([[-1000, -160, 40, 240, 3000]], dtype))
        assert read_image(tmp_path / "a.npy", (-160, 240))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("values", "came"),
    [
        (np.array([[0, np.nan]]), "finite pixels, got 1 NaN or infinite of 2"),
        (np.array([[np.inf, -np.inf]]), "2 NaN or infinite"),
        (np.array([[0, 1.5]]), r"floating-point pixels in \[0, 1\], or a window .*got values 0\.0 to 1\.5"),
        (np.array([[-0.5, 1]]), "values -0.5 to 1.0"),
        (np.array([[-1, 5]]), r"integers in 0 \.\. 65535, or a window .*got values -1 to 5"),
        (np.array([[0, 65536]]), "values 0 to 65536"),
        (np.zeros((0, 4)), r"an array \[H, W\], \[H, W, 1\] or \[H, W, 3\], got \[0, 4\]"),
        (np.zeros((4, 0, 3)), r"got \[4, 0, 3\]"),
        (np.zeros(7), r"got \[7\]"),
        (np.float64(1), r"got \[\]"),
        (np.zeros((3, 8, 8)), r"got \[3, 8, 8\]"),
        (np.zeros((8, 8, 4)), r"got \[8, 8, 4\]"),
        (np.zeros((2, 2, 2, 2)), r"got \[2, 2, 2, 2\]"),
        (np.zeros((1, 1001)), "no side 1000 times as long as the other"),
        (np.zeros((4, 4), bool), "integers or floating-point numbers, got bool"),
        (np.zeros((4, 4), complex), "numbers, got complex128"),
        (np.array([["a"]]), "numbers, got <U1"),
        (np.array([[{}, None]], object), "a complete .npy array of numbers, got .*Python objects"),
    ],
)
def test_arrays_that_are_no_image(tmp_path: Path, values: np.ndarray, came: str) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match=came) as caught:
        read_image(tmp_path / "a.npy")
    assert str(tmp_path / "a.npy") in str(caught.value)


def test_damaged_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(DataError, match="no such file"):
        read_image(path)
    np.save(path, np.zeros((50, 60), np.float32))
    whole = path.read_bytes()
    huge = whole.replace(b"(50, 60)", b"(5000000000, 60)").replace(b" " * 8 + b"\n", b"\n")
    assert len(huge) == len(whole)  # the header asks for 1.2 TB
    wrong = whole.replace(b"(50, 60)", b"(-1, 60)")
    for content in (b"", b"no array", whole[:5], whole[:40], whole[:-1], whole[:200], huge, wrong, b"PK" + whole):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npy: expected"):
            read_image(path)


def test_an_image_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 99)
    np.save(tmp_path / "a.npy", np.zeros((10, 10)))
    with pytest.raises(DataError, match=r"at most 99 pixels.*got \[10, 10\]"):
        read_image(tmp_path / "a.npy")


def test_a_folder_reads_them_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "a" / "1.npy", np.full((6, 6), 2048, np.uint16))
    cv2.imwrite(str(tmp_path / "b" / "2.png"), np.full((6, 6), 2048, np.uint16))
    (tmp_path / "b" / "3.npy").write_bytes(b"")
    data = Folder(tmp_path, "all", (3, 3))
    assert data.image_ids == ("a/1.npy", "b/2.png", "b/3.npy")
    assert set(data.check()) == {2}
    assert [s.image.max() for s in data.readable()] == [128, 128]
    assert [s.image.max() for s in Folder(tmp_path, "all", (3, 3), window=(0, 65535)).readable()] == [8, 8]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*8 or 16 bits.*floating-point"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("allowed", [False, True])
def test_a_truncated_jpeg_is_an_error(
    tmp_path: Path, kept: float, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (tmp_path / "a.jpg").write_bytes(whole[: int(kept * len(whole))])
    # Training scripts set this switch of Pillow's, after which it fills with grey.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
    with pytest.raises(DataError, match=r"a\.jpg: expected a complete, readable image, got .*"):
        read_image(tmp_path / "a.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is allowed


def test_wherever_a_jpeg_is_cut_it_is_an_error_or_all_pixels_were_there(tmp_path: Path) -> None:
    whole = jpeg(picture())
    errors = 0
    for cut in (*range(1, 40), *range(40, len(whole), 11)):
        (tmp_path / "a.jpg").write_bytes(whole[:-cut])
        try:
            read = read_image(tmp_path / "a.jpg")
        except DataError:
            errors += 1
        else:  # only the end-of-image marker was lost
            assert cut <= 2
            with Image.open(io.BytesIO(whole)) as image:
                assert np.array_equal(read, np.array(image))
    assert errors > 100


def test_a_truncated_png_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-60])
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_empty_alien_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "folder.jpg").mkdir()
    for name, came in (
        ("empty.jpg", "an empty file"),
        ("text.jpg", "19 bytes in none of the formats"),
        ("missing.jpg", "no such file"),
        ("folder.jpg", "a folder"),
    ):
        with pytest.raises(DataError, match=came) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_list_images_is_sorted_recursive_and_by_suffix(tmp_path: Path) -> None:
    for name in ("b/z.PNG", "b/a.jpg", "a.jpeg", "c.webp", "notes.txt", ".hidden.jpg", ".trash/x.jpg", "b/._a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)]
    assert found == ["a.jpeg", "b/a.jpg", "b/z.PNG", "c.webp"]


def test_list_images_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.jpg").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cls").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "up").symlink_to(tmp_path / "data", target_is_directory=True)
    assert list_images(tmp_path / "data") == [tmp_path / "data" / "cls" / "a.jpg"]


def test_list_images_of_a_file_is_that_file_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "scan").touch()
    assert list_images(tmp_path / "scan") == [tmp_path / "scan"]


def test_list_images_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least one image .*, got none"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="nowhere: expected an image file or a folder"):
        list_images(tmp_path / "nowhere")
