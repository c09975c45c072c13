"""Patterns: exact counts, exact thresholds, and what cannot be reached."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsefx.passes.prune.patterns import (
    Block,
    GroupWise,
    Pattern,
    Ties,
    Unstructured,
    kept_units,
    kth_smallest,
    mask_for,
    masks_together,
    parse_pattern,
    unfit,
)

SIZES = st.integers(1, 6)
SPARSITIES = st.floats(0.0, 0.99)


@st.composite
def scored(draw: st.DrawFn, rows: int = 1, columns: int = 1, distinct: bool = True) -> Tensor:
    """Scores of a matrix that blocks of ``rows`` by ``columns`` divide."""
    shape = (draw(SIZES) * rows, draw(SIZES) * columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    if distinct:
        return torch.randperm(math.prod(shape), generator=generator).reshape(shape).float() + 1.0
    return torch.randint(0, 3, shape, generator=generator).float()


@given(scored(), SPARSITIES, st.sampled_from(["keep", "drop"]))
def test_distinct_scores_keep_the_exact_count(scores: Tensor, sparsity: float, ties: Ties) -> None:
    mask = mask_for(scores, sparsity, Unstructured(), ties)
    kept = kept_units(scores.numel(), sparsity, ties)
    assert int(mask.sum()) == kept
    if 0 < kept < scores.numel():
        assert scores[mask].min() > scores[~mask].max()


@given(scored(distinct=False), SPARSITIES)
def test_the_tie_rules_bracket_the_count(scores: Tensor, sparsity: float) -> None:
    keep = mask_for(scores, sparsity, Unstructured(), "keep")
    drop = mask_for(scores, sparsity, Unstructured(), "drop")
    assert int(keep.sum()) >= kept_units(scores.numel(), sparsity, "keep")
    assert int(drop.sum()) <= kept_units(scores.numel(), sparsity, "drop")


@given(st.integers(1, 3), st.integers(1, 4), st.data())
def test_blocks_are_kept_or_dropped_whole(rows: int, columns: int, data: st.DataObject) -> None:
    scores = data.draw(scored(rows, columns))
    mask = mask_for(scores, data.draw(SPARSITIES), Block(rows, columns)).int()
    height, width = scores.shape
    blocks = mask.reshape(height // rows, rows, width // columns, columns)
    assert bool((blocks.amax((1, 3)) == blocks.amin((1, 3))).all())


def test_the_block_of_the_larger_mean_stays() -> None:
    scores = torch.tensor([[9.0, 0.0, 4.0, 6.0], [1.0, 1.0, 0.0, 0.0]])
    assert mask_for(scores, 0.75, Block(1, 2)).int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert mask_for(scores, 0.5, Block(2, 1)).int().tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]


@given(st.integers(2, 8), st.data())
def test_groups_keep_at_most_n_and_the_largest(group: int, data: st.DataObject) -> None:
    pattern = GroupWise(data.draw(st.integers(1, group - 1)), group)
    scores = data.draw(scored(columns=group))
    mask = mask_for(scores, pattern.sparsity, pattern)
    per_group = mask.reshape(scores.shape[0], -1, group)
    assert bool((per_group.sum(-1) == pattern.kept).all())
    in_groups = scores.reshape(per_group.shape)
    smallest_kept = in_groups.masked_fill(~per_group, torch.inf).amin(-1)
    largest_dropped = in_groups.masked_fill(per_group, -torch.inf).amax(-1)
    assert bool((smallest_kept > largest_dropped).all())


def test_groups_thin_out_one_by_one_on_the_way() -> None:
    scores = torch.rand(3, 16)
    kept = [int(mask_for(scores, s, GroupWise(2, 8)).sum()) for s in (0.0, 0.1, 0.3, 0.6, 0.75)]
    assert kept == [48, 48, 36, 24, 12]


def test_equal_scores_keep_the_first_of_a_group() -> None:
    assert mask_for(torch.ones(1, 4), 0.5, GroupWise(2, 4)).tolist() == [[True, True, False, False]]


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.floats(0, 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=20),
        min_size=1,
    ),
    st.data(),
)
def test_kth_smallest_is_exact(parts: list[list[float]], data: st.DataObject) -> None:
    values = sorted(value for part in parts for value in part)
    k = data.draw(st.integers(1, len(values)))
    found = kth_smallest([torch.tensor(part) for part in parts], k)
    assert found.item() == values[k - 1]


def test_kth_smallest_agrees_with_torch_on_a_weight() -> None:
    weight = torch.randn(64, 96).abs()
    for k in (1, 2, 1000, 6143, 6144):
        assert kth_smallest([weight], k) == weight.reshape(-1).kthvalue(k).values


@pytest.mark.parametrize("pattern", [Unstructured(), Block(2, 2)])
def test_one_threshold_for_several_weights(pattern: Pattern) -> None:
    small, large = torch.rand(4, 4), torch.rand(8, 4) + 1.0
    first, second = masks_together([small, large], 0.5, pattern)
    assert int(first.sum()) == 0
    assert int(second.sum()) == 24


@given(scored(), SPARSITIES)
def test_one_weight_together_is_the_weight_alone(scores: Tensor, sparsity: float) -> None:
    alone = mask_for(scores, sparsity, Unstructured())
    (together,) = masks_together([scores], sparsity, Unstructured())
    assert torch.equal(alone, together)


def test_rounding_means_what_was_written() -> None:
    assert kept_units(1000, 0.9, "keep") == 100
    assert kept_units(589_824, 0.95, "keep") == 29_491
    assert kept_units(589_824, 0.95, "drop") == 589_824 - 560_332


@pytest.mark.parametrize("text", ["unstructured", "1x4", "4x1", "16x16", "2:4", "1:16"])
def test_patterns_round_trip(text: str) -> None:
    assert str(parse_pattern(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("blocks", "expected 'unstructured', a block such as '1x4', or N:M such as '2:4'"),
        ("0x4", "a block needs at least one row and one column"),
        ("4:4", "N:M needs 0 < N < M"),
        ("0:4", "N:M needs 0 < N < M"),
    ],
)
def test_what_is_no_pattern(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="^" + why.replace("(", "\\(") + "$"):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("shape", "sparsity", "pattern", "why"),
    [
        ((6, 10), 0.5, Block(1, 4), "blocks of 1x4 do not divide its shape 6x10"),
        ((6, 10), 0.5, Block(4, 1), "blocks of 4x1 do not divide its shape 6x10"),
        ((6, 10), 0.5, GroupWise(2, 4), "groups of 4 do not divide its 10 inputs"),
        ((6, 8), 0.9, GroupWise(2, 4), "2:4 gives a sparsity of 0.5, not 0.9"),
        ((2, 3), 0.9, Unstructured(), "a sparsity of 0.9 leaves none of its 6 weights"),
        ((4, 8), 0.9, Block(2, 4), "a sparsity of 0.9 leaves none of its 4 blocks of 2x4"),
        ((4, 8), 0.75, Block(2, 4), None),
        ((4, 8), 0.5, GroupWise(2, 4), None),
    ],
)
def test_what_a_shape_cannot_reach(
    shape: tuple[int, int], sparsity: float, pattern: Pattern, why: str | None
) -> None:
    assert unfit(shape, sparsity, pattern) == why
