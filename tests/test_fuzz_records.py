"""Records and checks under arbitrary values: they take them or raise one of protomask's own errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from protomask import checks
from protomask.checkpoint import Description, PrototypeSource
from protomask.data.levels import check_window, to_bytes
from protomask.data.sample import Geometry, Sample, to_tensor
from protomask.data.transforms import check_size, make_sample
from protomask.errors import InputError
from protomask.files import safe_name
from protomask.model import Contract
from protomask.records import Localisation, Targets
from protomask.targets import choose_targets
from tests import test_fuzz_readers as readers
from tests.fuzzing import EXECUTED, only_our_errors

WANTED = 10_000  # with the readers
CASES = {
    "checks": 800,
    "records": 800,
    "samples": 500,
    "descriptions": 600,
    "targets": 400,
    "pixels": 300,
    "names": 300,
}
taken: Counter[str] = Counter()


def fuzz(name: str, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., object]], Callable[[], None]]:
    """A test of so many cases as :data:`CASES` says; each is taken or refused by an error of ours."""

    def decorate(body: Callable[..., object]) -> Callable[[], None]:
        @settings(
            max_examples=CASES[name],
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.tuples(*strategies))
        def test(values: tuple[Any, ...]) -> None:
            EXECUTED[name] += 1
            with only_our_errors(values):
                body(*values)
                taken[name] += 1

        def whole() -> None:
            test()
            assert 0 < taken[name] < EXECUTED[name], "all taken, or all refused"

        return whole

    return decorate


numbers = st.one_of(
    st.integers(-3, 20),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(
        [math.nan, math.inf, -0.0, 1e308, 10**400, np.float32(1), np.int64(3), np.float64("nan"), np.bool_(1)]
    ),
)
scalars = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=5), st.binary(max_size=5), st.complex_numbers())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
sizes = st.tuples(st.integers(0, 4), st.integers(0, 4))


@st.composite
def tensors(draw: st.DrawFn, *shape: int) -> Any:
    """Mostly a tensor of about the shape, of any dtype, with odd values in it; now and then something else."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    if draw(st.integers(0, 3)) == 0:
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    kinds = [
        torch.float32,
        torch.float32,
        torch.int64,
        torch.int64,
        torch.bool,
        torch.float16,
        torch.complex64,
        torch.uint8,
    ]
    made = torch.zeros(shape, dtype=draw(st.sampled_from(kinds)))
    fill = draw(st.sampled_from([0, 1, 1, 2, math.nan, math.inf, -1]))
    if made.is_floating_point() or math.isfinite(fill):
        made = (
            made + 0 if made.dtype == torch.bool else made.fill_(fill if made.dtype != torch.uint8 or fill >= 0 else 0)
        )
    return made.to("meta") if draw(st.integers(0, 30)) == 0 else made


@fuzz("checks", values, values, st.lists(st.sampled_from(["B", "H", 0, 1, 3]), max_size=4), numbers, tensors(2, 3))
def test_checks(value: Any, other: Any, shape: list[Any], low: Any, tensor: Any) -> None:
    if isinstance(low, float) and math.isnan(low):
        low = 0
    each: tuple[Callable[[], object], ...] = (
        lambda: checks.check_tensor("a", tensor, shape),
        lambda: checks.check_tensor("a", tensor, ("B", 3), finite=False),
        lambda: checks.check_array("a", tensor, shape, np.uint8),
        lambda: checks.check_array("a", np.asarray(3.0), shape),
        lambda: checks.check_number("a", value, -5, 10**6),
        lambda: checks.check_number("a", value, low),
        lambda: checks.check_count("a", value),
        lambda: checks.check_index("a", value, 7),
        lambda: checks.check_choice("a", value, ("x", "y")),
        lambda: check_size(value),
        lambda: check_size((value, other)),
        lambda: check_window(value),
        lambda: check_window((value, other)),
    )
    problem: InputError | None = None
    for check in each:
        try:
            check()
        except InputError as error:
            problem = error
    if problem is not None and isinstance(value, (list, dict)):
        raise problem


@st.composite
def localisations(draw: st.DrawFn) -> dict[str, Any]:
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    whole: dict[str, Any] = {
        "method": "m",
        "targets": (torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)),
        "maps": torch.rand(n, h, w),
        "boxes": torch.zeros(n, 4, dtype=torch.int64),
        "peaks": torch.zeros(n, 2, dtype=torch.int64),
        "activations_before": torch.zeros(n),
        "activations_after": torch.zeros(n),
        "scores": torch.zeros(n),
        "located": torch.ones(n, dtype=torch.bool),
        "reasons": ("",) * n,
        "mask_vectors": {3: torch.zeros(n, 3, 3)},
        "settings": {},
    }
    for name in draw(st.lists(st.sampled_from(list(whole)), max_size=2)):
        like = whole[name]
        shape = like.shape if isinstance(like, Tensor) else ()
        odd = {
            "targets": st.tuples(tensors(n), tensors(n)),
            "mask_vectors": st.dictionaries(scalars, tensors(n, 3, 3), max_size=2) | scalars,
            "reasons": values,
            "settings": values,
        }
        whole[name] = draw(odd.get(name, tensors(*shape)))
    return whole


@fuzz("records", localisations())
def test_records(given: Mapping[str, Any]) -> None:
    found = Localisation(**{**given, "targets": Targets(*given["targets"])})
    assert len(found[: len(found)]) == len(found)
    assert len(Localisation.join([found, found])) == 2 * len(found)


@st.composite
def pictures(draw: st.DrawFn) -> Any:
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    height, width = draw(sizes)
    shape = (height + 1, width + 1, 3) if draw(st.integers(0, 5)) else draw(st.tuples(*[st.integers(0, 3)] * 3))
    return np.zeros(shape, draw(st.sampled_from(["u1", "u1", "u1", "u1", "f4", "i8", "O"])))


boxes = st.one_of(
    st.none(),
    arrays.arrays(
        np.float64, 4, elements=st.floats(-3, 8) | st.sampled_from([math.nan, math.inf, 1e300, 1e-300, 1 + 1e-9])
    ),
    arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(max_dims=2, max_side=4)),
)
points = st.none() | arrays.arrays(np.float64, st.tuples(st.integers(0, 3), st.just(2)))
plain_sizes = st.tuples(st.integers(1, 4), st.integers(1, 4)) | values


@fuzz("samples", pictures(), boxes, points, plain_sizes, st.sampled_from(["none", "box", "x"]), st.integers(-1, 3))
def test_samples(image: Any, box: Any, where: Any, size: Any, crop: str, label: int) -> None:
    sample = make_sample("a", image, label, size, crop=crop, box=box, points=where)
    assert isinstance(sample, Sample)
    assert sample.image.shape[:2] == tuple(size)
    if sample.box is not None:
        x0, y0, x1, y1 = sample.box.tolist()
        assert -1e-3 <= x0 < x1 <= size[1] + 1e-3
        assert -1e-3 <= y0 < y1 <= size[0] + 1e-3
    to_tensor([sample.image], (0.5,) * 3, (0.5,) * 3)


@fuzz(
    "descriptions", st.dictionaries(st.sampled_from(list(Description.__dataclass_fields__)), values, max_size=2), values
)
def test_descriptions(changes: dict[str, Any], source: Any) -> None:
    PrototypeSource(box=source if isinstance(source, list) else None, file=source if isinstance(source, str) else "")
    whole: dict[str, Any] = {"family": "f", "backbone": "b", "prototype_shape": (4, 2, 1, 1), "num_classes": 2}
    Description(**{**whole, **changes})


class Model:
    num_prototypes = 5

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        return torch.zeros(len(images), 5)

    def class_weights(self) -> Tensor:
        return torch.eye(5, 3)


forms = st.one_of(
    st.sampled_from(
        ["all", "top:2", "top:0", "class:1", "class:9", "class:" + "9" * 5000, "top:" + "9" * 5000, "top:", "x"]
    ),
    st.text(max_size=6),
    st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), max_size=4),
    values,
    tensors(3, 2),
)


@fuzz("targets", forms)
def test_targets(form: Any) -> None:
    model = Contract(Model(), 5, None, None, (0.5,), (0.5,), (None, None))
    chosen = choose_targets(form, model, 3, torch.zeros(3, 5))
    assert int(chosen.images.max()) < 3


@fuzz(
    "pixels",
    arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=2, max_dims=3, max_side=3)),
    st.none()
    | st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_pixels(pixels: np.ndarray, window: Any) -> None:
    with np.errstate(all="ignore"):
        shown = to_bytes(pixels, "a", check_window(window))
    assert (shown.dtype, shown.shape) == (np.uint8, pixels.shape)


@fuzz("names", st.text() | st.text(st.characters(), min_size=1, max_size=400) | values)
def test_names(image_id: Any) -> None:
    name = safe_name(image_id)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert 0 < len(name) < 100


def test_geometry_moves_there_and_back() -> None:
    geometry = Geometry((30, 40), (4.0, 3.0, 24.0, 23.0), (10, 10))
    boxes = np.array([[5.0, 6.0, 9.0, 12.0]])
    assert geometry.to_source(geometry.to_sample(boxes)) == pytest.approx(boxes)


def test_ten_thousand_cases_and_more_have_run() -> None:
    wanted = {**readers.CASES, **CASES}
    assert len(wanted) == len(readers.CASES) + len(CASES)
    if not EXECUTED.keys() >= wanted.keys():
        pytest.skip("only a part of the fuzzing was asked for")
    assert sum(EXECUTED[name] for name in wanted) >= WANTED
