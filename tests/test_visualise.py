"""Overlays change the pixels that they should and no others; figures hold what was asked for and make valid PNGs."""

# ruff: noqa: RUF001 (true minus signs and dashes are what is tested)

from __future__ import annotations

import ast
import math
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from protomask.data.sample import to_tensor
from protomask.errors import InputError, ResourceError
from protomask.visualise import overlay
from protomask.visualise.figures import (
    BankRow,
    Contrast,
    Likeness,
    Patch,
    View,
    looks_like,
    method_panel,
    png_bytes,
    prototype_bank,
    save_figure,
    score_figure,
    wrong_versus_right,
)
from protomask.visualise.palette import METHOD_COLOURS, method_colour, rgb
from protomask.visualise.sheet import FONT, sheet, text_at, text_width, wrap, wrap_name
from protomask.visualise.view import picture, spotlit, stretched
from protomask.visualise.wording import number, short

RED = (213, 94, 0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _image(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(60, 200, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def _disc(height: int = 64, width: int = 64, x: int = 30, y: int = 26, radius: int = 10) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.asarray((before != after).any(2))


def _distance(region: np.ndarray) -> np.ndarray:
    """How far each pixel is from the nearest pixel of the region."""
    return cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _view(seed: int = 0, **parts: object) -> View:
    region = _disc()
    shown = {"map": region.astype(np.float32), "region": region, "box": (20, 16, 41, 37), "annotation": _disc(radius=6)}
    return View(_image(seed=seed), **(shown | parts))  # type: ignore[arg-type]


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def _labels(figure: Figure) -> list[str]:
    return [str(axes.get_label()) for axes in figure.axes]


def _size(png: bytes) -> tuple[int, int]:
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded.shape[1], decoded.shape[0]


# Overlays


def test_heat_leaves_the_image_where_the_map_is_zero_and_mixes_by_alpha_where_it_is_one() -> None:
    image, map_ = _image(), np.zeros((64, 64), np.float32)
    assert np.array_equal(overlay.heat(image, map_), image)
    map_[10:20, 10:20] = 1
    warm = overlay.heat(image, map_, alpha=0.5, colormap="inferno")
    assert np.array_equal(_changed(image, warm), map_ > 0)
    top = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1].astype(float)
    assert np.abs(warm[10:20, 10:20] - (0.5 * image[10:20, 10:20] + 0.5 * top)).max() <= 0.51


def test_heat_shows_more_of_the_image_where_the_map_is_lower() -> None:
    image = np.full((4, 101, 3), 128, np.uint8)
    map_ = np.tile(np.linspace(0, 1, 101, dtype=np.float32), (4, 1))
    # With one colour everywhere (the end of the map) the change would grow in proportion to the map; the colour varies,
    # so we undo the mixing: what remains of the image is 1 - alpha * map.
    black, white = (overlay.heat(np.full_like(image, v), map_, alpha=0.6).astype(float) for v in (0, 255))
    kept = (white - black)[0, :, 0] / 255
    assert np.abs(kept - (1 - 0.6 * map_[0])).max() < 0.01


@pytest.mark.parametrize("name", sorted(overlay.COLORMAPS))
def test_colour_maps_rise_in_lightness(name: str) -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    colours = cv2.applyColorMap(levels, overlay.COLORMAPS[name])
    lightness = cv2.cvtColor(colours, cv2.COLOR_BGR2LAB)[0, :, 0].astype(int)
    assert lightness[-1] - lightness[0] > 120
    assert np.diff(lightness[::16]).min() > 0


def test_outline_changes_pixels_near_the_boundary_only() -> None:
    image, region = _image(), _disc()
    drawn = overlay.outline(image, region, RED, thickness=2)
    changed = _changed(image, drawn)
    border = _disc() & ~cv2.erode(_disc().astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert changed[border].all()
    assert _distance(border)[changed].max() <= 4
    assert (drawn[border] == RED).all(1).mean() > 0.7


def test_outline_has_a_dark_rim_on_both_sides_and_none_where_it_is_turned_off() -> None:
    image = np.full((64, 64, 3), 255, np.uint8)
    with_rim = overlay.outline(image, _disc(), (255, 255, 255), thickness=2)
    assert with_rim.min() < 60
    inside = _disc(radius=9)
    assert with_rim[inside].min() < 160
    assert with_rim[~_disc(radius=11)].min() < 160
    assert np.array_equal(overlay.outline(image, _disc(), (255, 255, 255), halo=None), image)


def test_outline_follows_holes_and_draws_nothing_for_an_empty_region() -> None:
    image, ring = _image(), _disc(radius=20) & ~_disc(radius=10)
    hole_edge = ~_disc(radius=9) & _disc(radius=11)
    assert _changed(image, overlay.outline(image, ring, RED))[hole_edge].mean() > 0.9
    assert np.array_equal(overlay.outline(image, np.zeros((64, 64), bool), RED), image)


def test_box_lies_on_its_outermost_pixels() -> None:
    image = _image()
    drawn = overlay.box(image, (10, 20, 31, 41), RED, thickness=1, halo=None)
    frame = np.zeros((64, 64), bool)
    frame[20:41, 10:31] = True
    frame[21:40, 11:30] = False
    assert np.array_equal((drawn == RED).all(2), frame)
    assert np.array_equal(drawn[~frame], image[~frame])
    assert np.array_equal(overlay.box(image, torch.zeros(4).numpy(), RED), image)


def test_dot_is_round_and_a_point_that_is_not_visible_is_not_drawn() -> None:
    image = _image()
    changed = _changed(image, overlay.dot(image, (30.0, 26.0), RED, radius=4))
    assert changed[_disc(radius=4)].all()
    assert not changed[~_disc(radius=7)].any()
    assert np.array_equal(overlay.dot(image, (math.nan, math.nan), RED), image)


def test_spotlight_keeps_the_region_and_darkens_and_fades_the_rest() -> None:
    image, region = _image(), _disc()
    lit = overlay.spotlight(image, region, light=0.5, saturation=0.0)
    assert np.array_equal(lit[region], image[region])
    rest = lit[~region].astype(int)
    assert (rest.max(1) == rest.min(1)).all()
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[~region]
    assert np.abs(rest[:, 0] - grey / 2).max() <= 0.51


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_upscale_multiplies_the_size_and_keeps_image_map_and_region(factor: int) -> None:
    image, region = _image(40, 56), _disc(40, 56)
    large = overlay.upscale(image, factor)
    assert large.shape == (40 * factor, 56 * factor, 3)
    assert np.abs(cv2.resize(large, (56, 40), interpolation=cv2.INTER_AREA).astype(int) - image).mean() < 2
    map_ = overlay.upscale_map(region.astype(np.float64), factor)
    assert map_.shape == large.shape[:2]
    assert map_.min() >= 0
    assert map_.max() <= 1
    grown = overlay.upscale_region(region, factor)
    assert abs(grown.sum() / factor**2 - region.sum()) < 0.03 * region.sum()
    exact = np.kron(region, np.ones((factor, factor), bool))
    edge = _distance(exact & ~cv2.erode(exact.astype(np.uint8), np.ones((3, 3))).astype(bool))
    assert (edge[grown != exact] <= factor).all()


def test_no_pixel_of_a_region_vanishes_when_it_is_enlarged() -> None:
    region = np.zeros((9, 9), bool)
    region[4, 4] = region[0, 0] = True
    grown = overlay.upscale_region(region, 4)
    assert grown[16:20, 16:20].any()
    assert grown[:4, :4].any()


def test_display_factor_is_the_least_that_reaches_the_side() -> None:
    assert overlay.display_factor(_image(96, 96), 448) == 5
    assert overlay.display_factor(_image(448, 500), 448) == 1
    assert overlay.display_factor(_image(900, 900), 448) == 1


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5,), (0.25,)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))])
def test_denormalise_inverts_to_tensor(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = np.repeat(levels[:, :, None], 3, axis=2)
    images = np.stack([grey, grey if len(mean) == 1 else _image(16, 16)])
    back = overlay.denormalise(to_tensor(images, mean, std), mean, std)
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - images).max() <= 1


def test_denormalise_clips_and_refuses_what_does_not_fit() -> None:
    assert overlay.denormalise(torch.full((1, 3, 2, 2), 99.0), MEAN, STD).min() == 255
    assert overlay.denormalise(torch.full((1, 1, 2, 2), -99.0), (0.5,), (0.5,)).max() == 0
    for images, mean in ((torch.zeros(1, 2, 4, 4), (0.0, 0.0)), (torch.zeros(1, 3, 4, 4), (0.5,))):
        with pytest.raises(InputError):
            overlay.denormalise(images, mean, (1.0,) * len(mean))
    with pytest.raises(InputError, match="NaN"):
        overlay.denormalise(torch.full((1, 3, 2, 2), math.nan), MEAN, STD)


def test_crop_is_square_around_the_box_and_stays_within_the_image() -> None:
    image = _image(60, 80)
    cut, box = overlay.crop(image, (30, 20, 40, 26), context=0.5)
    assert box == (25, 13, 45, 33)
    assert np.array_equal(cut, image[13:33, 25:45])
    cut, box = overlay.crop(image, (70, 50, 80, 60), context=1.0)
    assert box == (50, 30, 80, 60)
    assert overlay.crop(image, (0, 0, 80, 60), context=1.0)[1] == (0, 0, 80, 60)


def test_overlays_leave_their_inputs_alone() -> None:
    image, region, map_ = _image(), _disc(), _disc().astype(np.float32)
    copies = image.copy(), region.copy(), map_.copy()
    for drawn in (
        overlay.heat(image, map_),
        overlay.outline(image, region, RED),
        overlay.box(image, (1, 1, 9, 9), RED),
        overlay.dot(image, (5, 5), RED),
        overlay.spotlight(image, region),
        overlay.upscale(image, 1),
        overlay.crop(image, (1, 1, 9, 9))[0],
    ):
        drawn[:] = 0
    assert all(np.array_equal(a, b) for a, b in zip(copies, (image, region, map_), strict=True))


def test_overlays_refuse_bad_input_by_name() -> None:
    image = _image()
    with pytest.raises(InputError, match=r"image: expected .*uint8"):
        overlay.heat(image.astype(np.float32), np.zeros((64, 64)))
    with pytest.raises(InputError, match=r"map: expected values in \[0, 1\], got 0 to 2"):
        overlay.heat(image, np.array([[0, 2.0] * 32] * 64))
    with pytest.raises(InputError, match="map"):
        overlay.heat(image, np.full((64, 64), np.nan))
    with pytest.raises(InputError, match="map: expected shape"):
        overlay.heat(image, np.zeros((32, 32)))
    with pytest.raises(InputError, match="colormap: expected one of"):
        overlay.heat(image, np.zeros((64, 64)), colormap="jet")
    with pytest.raises(InputError, match="region"):
        overlay.outline(image, np.zeros((64, 64)), RED)
    with pytest.raises(InputError, match="box"):
        overlay.box(image, (1, 2, 3), RED)


# Colours and words


def test_methods_keep_their_colours_and_unknown_ones_get_the_same_one_every_time() -> None:
    assert len(set(METHOD_COLOURS.values())) == len(METHOD_COLOURS)
    assert method_colour("mdm") == METHOD_COLOURS["mdm"]
    assert method_colour("my-method") == method_colour("my-method")
    assert rgb("#D55E00") == (213, 94, 0)


def test_numbers_are_spelt_for_readers() -> None:
    assert [short(v) for v in (0.714, 1.0, -0.05, math.nan, None, 12.5)] == [".71", "1.00", "−.05", "–", "–", "12.50"]
    assert [number(v) for v in (0.714, -0.05, -0.001, math.inf)] == ["0.71", "−0.05", "0.00", "–"]


def test_text_is_wrapped_between_words_and_cut_to_its_width() -> None:
    lines = wrap("a rather long name of a class of birds", 1.0, 9, lines=2)
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert all(text_width(line, 9) <= 1.0 for line in lines)
    assert wrap("short", 1.0, 9) == ["short"]
    assert wrap("", 1.0, 9) == []


# Views and figures


@pytest.mark.parametrize("lines", [1, 2])
def test_what_tells_prototypes_of_a_class_apart_is_never_cut_off(lines: int) -> None:
    kinds = ("American Three toed Woodpecker", "001.Black_footed_Albatross_of_the_South", "long " * 40, "Cardinal")
    for kind in kinds:
        shown = wrap_name(f"{kind} / 1893", 2.0, 9.5, "bold", lines)
        assert len(shown) <= lines
        assert " ".join(shown).endswith("/ 1893")
        assert all(text_width(line, 9.5, "bold") <= 2.0 for line in shown)
    assert wrap_name("Cardinal / 3", 2.0, 9.5, "bold", lines) == ["Cardinal / 3"]
    name = "American Three toed Woodpecker / 1893"
    row = Likeness(name, _view(), _view(), 1.0, 1.0)
    texts = [" ".join(text.split()) for text in _texts(looks_like([row], class_name="c"))]
    assert name in texts
    panel = method_panel(_image(), {"mdm": np.zeros((64, 64))}, {}, title=f"{name}, activation 3.21")
    assert f"{name}, activation 3.21" in [" ".join(text.split()) for text in _texts(panel)]


def test_picture_draws_each_part_in_its_own_colour() -> None:
    drawn = picture(_view(peak=(30, 26), points=np.array([[5.0, 5.0], [math.nan, math.nan]])), "#D55E00", "plain", 256)
    assert drawn.shape == (256, 256, 3)
    assert (drawn == RED).all(2).any()
    assert (drawn[22, 22] == 255).all()  # the point (5, 5), enlarged four times
    assert (drawn[105, 121] == RED).all()  # the peak (30, 26)
    plain = picture(View(_image()), "#D55E00", "spotlight", 256)
    assert np.array_equal(plain, overlay.upscale(_image(), 4))


def test_spotlit_drops_the_map_and_lights_the_box_where_there_is_no_region() -> None:
    lit = spotlit(_view(region=None, annotation=None, box=(16, 16, 48, 48)), "#D55E00")
    image = overlay.upscale(_image(), 7)
    assert np.array_equal(lit[160:280, 160:280], image[160:280, 160:280])
    assert (lit[:80] <= image[:80]).mean() > 0.95
    assert lit[:80].mean() < 0.7 * image[:80].mean()


def test_a_stretched_view_keeps_everything_in_its_place() -> None:
    region = _disc(48, 48, 20, 30, 6)
    parts = {"map": region.astype(np.float32), "region": region, "annotation": region}
    view = View(
        _image(48, 48), **parts, box=(14, 24, 27, 37), peak=(20, 30), points=np.array([[20.0, 30.0]]), caption="c"
    )
    wide = stretched(view, (48, 96))
    assert wide.image.shape == (48, 96, 3)
    assert wide.caption == "c"
    assert np.asarray(wide.box).tolist() == [28, 24, 54, 37]
    assert np.asarray(wide.peak).tolist() == [40.5, 30]
    assert np.asarray(wide.points).tolist() == [[40.5, 30]]
    for mask in (wide.region, wide.annotation, wide.map):
        assert mask is not None
        rows, columns = np.nonzero(mask)
        assert (columns.mean(), rows.mean()) == pytest.approx((40.5, 30))
        assert np.asarray(mask, dtype=float).sum() == pytest.approx(2 * region.sum(), rel=0.05)
    assert stretched(view, (48, 48)) is view
    with pytest.raises(InputError, match="size: expected at least the image's, 48 x 48, got 48 x 40"):
        stretched(view, (48, 40))
    panel = method_panel(view.image, {"mdm": parts["map"]}, {}, annotation=region, size=(48, 96))
    assert all(axes.images[0].get_array().shape == (480, 960, 3) for axes in panel.axes)  # type: ignore[union-attr]


def test_views_refuse_parts_of_another_size() -> None:
    with pytest.raises(InputError, match="region"):
        View(_image(), region=_disc(32, 32))
    with pytest.raises(InputError, match="map"):
        View(_image(), map=np.zeros((3, 3)))


def test_method_panel_shows_the_image_and_each_method_with_its_scores() -> None:
    image, region = _image(48, 64), _disc(48, 64)
    maps = {name: region.astype(np.float32) for name in ("mdm", "upsampling", "random", "a $b$ method")}
    figure = method_panel(
        image,
        maps,
        {"mdm": (20, 16, 41, 37), "upsampling": np.zeros(4)},
        title="cost $5 $ only",
        regions={"mdm": region},
        peaks={"mdm": (30, 26)},
        annotation=region,
        points=np.array([[3.0, 4.0]]),
        scores={"mdm": {"IoU": 0.714, "hit": 1.0}, "upsampling": {"IoU": math.nan}},
        notes={"random": "constant map"},
        columns=3,
    )
    assert _labels(figure) == ["image", *maps]
    texts = _texts(figure)
    assert {"cost $5 $ only", "mdm", "a $b$ method", "IoU .71 · hit 1.00", "IoU –", "constant map"} <= set(texts)
    tops = [round(axes.get_position().y1, 3) for axes in figure.axes]
    assert tops[0] == tops[2] > tops[3] == tops[4]
    width, height = figure.get_size_inches()
    assert _size(png_bytes(figure, dpi=50)) == (int(width * 50), int(height * 50))


def test_looks_like_multiplies_and_adds_up() -> None:
    rows = [Likeness(f"red crown / {k}", _view(k), _view(9), a, w) for k, (a, w) in enumerate([(2, 1.5), (4, -0.5)])]
    figure = looks_like(rows, class_name="red crown", title="Why?", score=2.5)
    assert [row.contribution for row in rows] == [3.0, -2.0]
    names = ("test", "test part", "source part", "source", "bar")
    assert _labels(figure) == [f"{name} {k}" for k in range(2) for name in names]
    texts = _texts(figure)
    assert {"Why?", "1.00", "1.50", "2.50", "from the 2 shown"} <= set(texts)
    assert {"2.00 × 1.50 = 3.00", "4.00 × −0.50 = −2.00"} <= set(texts)
    bars = [axes for axes in figure.axes if str(axes.get_label()).startswith("bar")]
    assert [bar.patches[0].get_width() for bar in bars] == [3.0, -2.0]  # type: ignore[attr-defined]
    assert bars[0].get_xlim() == bars[1].get_xlim()
    assert "from all others" not in _texts(looks_like(rows, class_name="red crown"))
    assert "from the 2 shown of 1200" in _texts(looks_like(rows, class_name="red crown", count=1200))
    assert "from the 2 shown" in _texts(looks_like(rows, class_name="red crown", count=2))
    assert _size(png_bytes(figure, dpi=40))[0] == int(figure.get_figwidth() * 40)


def test_prototype_bank_has_a_row_per_prototype_and_a_picture_per_patch() -> None:
    near = tuple(Patch(_view(k, caption=f"test/{k}"), 5.0 - k) for k in range(3))
    bank = [BankRow("red crown / 0", Patch(_view(), 9.2), near), BankRow("red crown / 1", Patch(_view()), near[:1])]
    figure = prototype_bank("red crown", bank)
    assert _labels(figure) == ["source 0", "nearest 0.0", "nearest 0.1", "nearest 0.2", "source 1", "nearest 1.0"]
    assert {"red crown: 2 prototypes", "red crown / 0", "9.20", "5.00 test/0", "4.00 test/1"} <= set(_texts(figure))


def test_cut_outs_show_the_region_with_its_surroundings() -> None:
    figure = prototype_bank("c", [BankRow("p", Patch(_view()), (Patch(_view(annotation=None)),))])
    cut = next(axes for axes in figure.axes if axes.get_label() == "nearest 0.0").images[0].get_array()
    # The box is 21 pixels wide, with half of that on either side: 42 of the image's 64 pixels, enlarged 11 times.
    assert cut is not None
    assert cut.shape[:2] == (462, 462)
    bare = prototype_bank("c", [BankRow("p", Patch(View(_image())), (Patch(View(_image())),))])
    blank = np.asarray(bare.axes[1].images[0].get_array())
    assert blank.min() == blank.max()


def test_wrong_versus_right_has_three_pictures_per_image_in_the_methods_colours() -> None:
    rows = [Contrast(_view(k, caption="IoU .07"), _view(k, caption="IoU .64"), f"image {k}") for k in range(3)]
    figure = wrong_versus_right(rows)
    assert _labels(figure) == [f"{name} {k}" for k in range(3) for name in ("image", "wrong", "right")]
    texts = _texts(figure)
    assert {"Image", "MDM", "image 0", "image 2", "IoU .07", "IoU .64"} <= set(texts)
    assert any("white outline" in text.lower() for text in texts)
    colours = {"wrong": rgb(method_colour("upsampling")), "right": rgb(method_colour("mdm"))}
    for axes in figure.axes:
        drawn = np.asarray(axes.images[0].get_array())
        has = {name for name, colour in colours.items() if (drawn == colour).all(2).sum() > 50}
        assert has == {str(axes.get_label()).split()[0]} - {"image"}
    assert _size(png_bytes(figure, dpi=100))[0] == 900
    assert figure.get_facecolor() == (1, 1, 1, 1)


@dataclass(frozen=True)
class _Summary:
    mean: float | None
    low: float | None
    high: float | None
    n: int


def test_score_figure_places_means_and_intervals() -> None:
    scores = {
        "mdm": {"energy": _Summary(0.6, 0.55, 0.66, 210), "deletion": _Summary(0.2, 0.1, 0.3, 198)},
        "annotation": {"energy": _Summary(0.8, None, math.nan, 210), "deletion": _Summary(None, None, None, 0)},
        "random": {"energy": _Summary(math.nan, math.nan, math.nan, 0)},
    }
    figure = score_figure(scores, ["energy", "deletion"], {"energy": 1, "deletion": -1}, title="Scores")
    assert _labels(figure) == ["energy", "deletion"]
    energy, deletion = figure.axes
    drawn = [np.asarray(line.get_xdata()).tolist() for line in energy.lines]
    assert drawn == [[0.55, 0.66], [0.6], [0.8]]
    assert [np.asarray(line.get_xdata()).tolist() for line in deletion.lines] == [[0.1, 0.3], [0.2]]
    assert energy.lines[1].get_markerfacecolor() == method_colour("mdm")
    texts = _texts(figure)
    assert {"energy ↑", "deletion ↓", "Scores", "mdm", "annotation", "random"} <= set(texts)
    assert any("n = 198 to 210" in text for text in texts)


@pytest.mark.parametrize("make", [lambda: looks_like([], class_name="c"), lambda: prototype_bank("c", [])])
def test_figures_refuse_to_show_nothing(make: object) -> None:
    with pytest.raises(InputError, match="rows: expected at least one"):
        make()  # type: ignore[operator]
    with pytest.raises(InputError, match="rows"):
        wrong_versus_right([])
    with pytest.raises(InputError, match="maps"):
        method_panel(_image(), {}, {})
    with pytest.raises(InputError, match="scores"):
        score_figure({}, ["energy"], {})


def test_save_figure_writes_a_png_of_the_expected_size_and_nothing_else(tmp_path: Path) -> None:
    figure = prototype_bank("c", [BankRow("p", Patch(_view()))])
    path = save_figure(figure, tmp_path / "new" / "bank.png", dpi=30)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = figure.get_size_inches()
    assert struct.unpack(">II", content[16:24]) == (int(width * 30), int(height * 30))
    assert content == png_bytes(figure, dpi=30)
    assert [p.name for p in path.parent.iterdir()] == ["bank.png"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    figure = prototype_bank("c", [BankRow("p", Patch(_view()))])
    with pytest.raises(ResourceError, match=r"bank\.png: expected a file that can be written"):
        save_figure(figure, tmp_path / "file" / "bank.png", dpi=20)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match="folder"):
        save_figure(figure, tmp_path / "folder", dpi=20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_drawing_never_touches_pyplot_or_the_callers_settings() -> None:
    code = (
        "import sys, matplotlib, numpy as np\n"
        "before = matplotlib.rcParams.copy()\n"
        "from protomask.visualise.figures import method_panel, png_bytes\n"
        "png_bytes(method_panel(np.zeros((32, 32, 3), np.uint8), {'mdm': np.zeros((32, 32))}, {}), dpi=20)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        # To read the backend is to choose one, by importing pyplot.
        "changed = [k for k in before if k != 'backend' and matplotlib.rcParams[k] != before[k]]\n"
        "assert not changed, changed\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pictures_depend_on_records_and_checks_alone() -> None:
    allowed = ("protomask.errors", "protomask.checks", "protomask.files", "protomask.records", "protomask.visualise")
    files = sorted(Path(overlay.__file__).parent.glob("*.py"))
    assert len(files) >= 10
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        ours = [name for name in names if name.split(".")[0].startswith(("protomask", "protopnet", "xprotonet"))]
        assert all(name.startswith(allowed) for name in ours), (file.name, ours)


def _ink(text: str, size: float = 22) -> np.ndarray:
    """[H, W] bool, where a text at (.1, .3) inches is."""
    figure = sheet(2, 1)
    text_at(figure, 0.1, 0.3, text, size)
    return np.asarray(figure_pixels(figure)).min(2) < 128


def test_texts_side_by_side_share_a_baseline() -> None:
    alone, beside = _ink("x"), _ink("x g")
    width = np.flatnonzero(alone.any(0)).max() + 1
    rows = [np.flatnonzero(ink[:, :width].any(1)) for ink in (alone, beside)]
    assert np.array_equal(*rows)  # the g reaches below the x and moves it nowhere
    assert beside.any(1).sum() > alone.any(1).sum()


def test_a_text_with_descenders_stands_as_matplotlib_puts_its_top() -> None:
    figure = sheet(2, 1)
    figure.text(0.1 / 2, 1 - 0.3, "plug", fontsize=22, family=FONT, va="top", linespacing=1.25)
    wanted = np.flatnonzero((figure_pixels(figure).min(2) < 128).any(1))[[0, -1]]
    assert np.abs(np.flatnonzero(_ink("plug").any(1))[[0, -1]] - wanted).max() <= 1


def figure_pixels(figure: Figure) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png_bytes(figure), np.uint8), cv2.IMREAD_COLOR)
