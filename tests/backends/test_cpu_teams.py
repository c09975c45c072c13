from __future__ import annotations

import random

import torch

from sparsefx.backends.cpu.runtime.teams import Team, Teams
from sparsefx.backends.cpu.target import CpuTarget
from tests.backends.cpu_cases import padded_batch, quantized, sparse_
from tests.programs import captured


def test_the_fastest_way_is_kept_and_others_are_tried_again() -> None:
    seconds = {Team(1): 3.0, Team(2): 2.0, Team(2, by_panel=True): 1.0}
    teams = Teams(threads=2, panels=2)
    taken = []
    for _ in range(200):
        way = teams.choose()
        taken.append(way)
        teams.took(way, seconds[way])
    assert set(taken[:9]) == set(seconds)
    assert taken[9:31] == [Team(2, by_panel=True)] * 22
    assert set(taken[31:]) > {Team(2, by_panel=True)}
    # The second core is gone: the fastest way takes three times as long from now on.
    seconds = {Team(1): 3.0, Team(2): 6.0, Team(2, by_panel=True): 9.0}
    for _ in range(600):
        way = teams.choose()
        teams.took(way, seconds[way])
    assert teams.best == Team(1)


def test_a_way_that_is_fast_at_times_is_as_good_as_its_mean() -> None:
    # Cores that the hypervisor moves: two threads take 5 or 11 ms, one takes 7.
    draw = random.Random(0)
    teams = Teams(threads=2, panels=1)
    spent = []
    for _ in range(2000):
        way = teams.choose()
        seconds = 7e-3 if way == Team(1) else draw.choice((5e-3, 11e-3))
        teams.took(way, seconds)
        spent.append(seconds)
    assert sum(spent[200:]) / len(spent[200:]) < 7.3e-3


def test_a_run_that_was_held_up_changes_no_choice() -> None:
    teams = Teams(threads=2, panels=1)
    for number in range(200):
        way = teams.choose()
        held_up = 50.0 if number in (60, 61, 120) else 0.0
        teams.took(way, held_up + {Team(1): 7.0, Team(2): 5.0}[way])
        assert number < 6 or teams.best == Team(2)


def test_one_thread_and_one_panel_have_no_choice() -> None:
    assert Teams(threads=1, panels=9).choose() == Team(1)
    assert {Teams(threads=4, panels=1).choose()} == {Team(4)}


def test_every_way_gives_the_same_bits() -> None:
    program = sparse_(captured("bert-cls"), 0.3)
    for model in (program, quantized(program, padded_batch(program, 4, 32))):
        compiled = CpuTarget(threads=2).lower(model)
        batch = padded_batch(program, 1, 150)
        found = [compiled(**batch)["logits"] for _ in range(9)]
        assert all(torch.equal(found[0], other) for other in found[1:])
