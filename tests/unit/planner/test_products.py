"""Which driver's names stand for whole boards with known rates."""

from __future__ import annotations

import pytest

from uellm.hardware.products import product_of


@pytest.mark.parametrize(
    "name",
    [
        "GRID A100D-20C",
        "GRID A100-3-20C",
        "GRID T4-4C",
        "NVIDIA A40-8Q",
        "NVIDIA L40S-12C",
        "NVIDIA A100-1-5CME",
        "NVIDIA T400 4GB",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
    ],
)
def test_a_part_of_a_board_or_another_board_has_not_the_rates_of_the_whole_product(name):
    assert product_of(name) is None


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("Tesla V100-SXM2-32GB", "V100-32"),
        ("Tesla T4", "T4"),
        ("NVIDIA T4G", "T4"),
        ("NVIDIA GeForce RTX 5090", "RTX5090"),
        ("A100-40", "A100-40"),
    ],
)
def test_whole_boards_have_the_rates_of_their_product(name, product):
    assert product_of(name).name == product
