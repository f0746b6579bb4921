"""The exact optimum of bench/fragmentation.py, beside a simulation and where nothing can be chosen."""

from __future__ import annotations

import random

import pytest
from fragmentation_optimum import best_fit_and_optimum

SIZES = {1: 0.5, 2: 0.3, 4: 0.2}


def simulated_best_fit(nodes: int, gpus: int, load: float, events: int) -> float:
    rng, here, total = random.Random(4), [list[int]() for _ in range(nodes)], 0.0
    for _ in range(events):
        pods = [(node, size) for node, sizes in enumerate(here) for size in sizes]
        used = sum(size for _, size in pods)
        if pods and rng.random() < min(1.0, 0.5 * (used / (nodes * gpus * load)) ** 8):
            node, size = rng.choice(pods)
            here[node].remove(size)
        else:
            size = rng.choices(list(SIZES), list(SIZES.values()))[0]
            fitting = [sizes for sizes in here if sum(sizes) + size <= gpus]
            if fitting:
                max(fitting, key=sum).append(size)
        free = [gpus - sum(sizes) for sizes in here]
        lost = sum(each * sum(often for size, often in SIZES.items() if each < size) for each in free)
        total += lost / max(1, sum(free))
    return total / events


def test_the_average_of_best_fit_is_that_of_a_long_simulation() -> None:
    fit, least = best_fit_and_optimum(2, 4, SIZES, 0.8)
    assert fit == pytest.approx(simulated_best_fit(2, 4, 0.8, 60_000), rel=0.03)
    assert least < fit


def test_where_nothing_can_be_chosen_the_optimum_is_best_fit() -> None:
    fit, least = best_fit_and_optimum(1, 4, SIZES, 0.8)
    assert least == pytest.approx(fit, rel=2e-3)
    assert best_fit_and_optimum(3, 4, {4: 1.0}, 0.8) == (0.0, 0.0)
