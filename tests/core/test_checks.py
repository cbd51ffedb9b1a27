"""Checks of arguments: what counts as a number."""

import warnings

import numpy as np
import pytest

from stylefusion_hf.core.checks import check_number


@pytest.mark.parametrize("value", [2, 2.0, np.int8(2), np.uint64(2), np.float16(2), np.float32(2), np.float64(2)])
def test_numbers_of_python_and_numpy_without_a_warning(value: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_number("strength", value, 0, 3) == 2.0
        assert check_number("strength", value) == 2.0


@pytest.mark.parametrize("value", [True, np.True_, "2", None, 2 + 0j, float("nan"), np.float32("inf"), 10**400, [2]])
def test_what_is_not_a_finite_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="^strength is a number, got .{1,80}$"):
        check_number("strength", value)
