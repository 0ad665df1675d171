"""The checks of ranges that all settings share; the conversion is tested where it is used
(tests/stages/test_settings.py, tests/visage/test_model_config.py)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from visage.strict import check_positive, check_range, from_plain


@dataclass(frozen=True, kw_only=True)
class Sizes:
    side: float
    count: int

    def __post_init__(self) -> None:
        check_range(self, side=(1, 100), count=(2, None))
        check_positive(self, "side", "count")


def test_both_ends_are_inside() -> None:
    assert Sizes(side=1, count=2) != Sizes(side=100, count=10**9)


@pytest.mark.parametrize(
    ("side", "count", "message"),
    [
        (0.999, 2, "side is 0.999: give 1 to 100"),
        (100.5, 2, "side is 100.5: give 1 to 100"),
        (float("nan"), 2, "side is nan: give 1 to 100"),
        (5.0, 1, "count is 1: give 2 or more"),
    ],
)
def test_a_value_off_its_range_is_refused(side: float, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Sizes(side=side, count=count)


@pytest.mark.parametrize("value", [0, -1.5, float("nan")])
def test_what_is_not_above_zero_is_refused(value: float) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Width:
        width: float

        def __post_init__(self) -> None:
            check_positive(self, "width")

    assert Width(width=1e-9).width > 0
    with pytest.raises(ValueError, match=rf"^width is {value}: give a number above 0$"):
        Width(width=value)


def test_the_remedy_ends_each_error() -> None:
    for value in ({"side": 1.0}, {"side": "a", "count": 3}, {"side": 1, "count": 3, "odd": 0}, [1]):
        with pytest.raises(ValueError, match=r"^here.*; ask again$"):
            from_plain(value, Sizes, "here", "ask again")


def test_a_given_field_is_not_required() -> None:
    assert from_plain({"side": 2}, Sizes, "here", "ask", {"count": 3}) == Sizes(side=2.0, count=3)
    with pytest.raises(ValueError, match="unknown key 'count'; known keys: side"):
        from_plain({"side": 2, "count": 4}, Sizes, "here", "ask", {"count": 3})
