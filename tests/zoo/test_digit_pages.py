"""Each handwritten digit is shown once, and the splits keep what models were trained on apart."""

import numpy as np
import pytest

from edgevlm.errors import InputError
from edgevlm.zoo.digit_pages import page, page_order
from edgevlm.zoo.digits import load_digits, split_indices


def test_every_scan_is_asked_once_and_none_of_test_was_trained_on() -> None:
    assert sorted(page_order("all", 0)) == list(range(1797))
    trained = {index for of_class in split_indices("train") for index in of_class}
    calibrated = {index for of_class in split_indices("calibration") for index in of_class}
    assert not trained & set(page_order("held-out", 0))
    assert not (trained | calibrated) & set(page_order("test", 0))
    assert page_order("test", 0) != page_order("test", 1)
    assert set(page_order("test", 0)) == set(page_order("test", 1))


def test_a_page_shows_the_digit_of_its_scan_and_is_the_same_each_time() -> None:
    for index in (0, 17, 1796):
        digit, image = page(index)
        assert digit == load_digits().labels[index]
        assert image.shape == (512, 512, 3)
        assert image.dtype == np.uint8
        assert (image == page(index)[1]).all()
        ink = image[214:298, 214:298].min(axis=2) < 100
        strong = load_digits().images[index] > 12
        assert ink.mean() == pytest.approx(strong.mean(), abs=0.15)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="unknown split"):
        page_order("exam", 0)
