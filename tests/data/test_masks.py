from typing import Any

import numpy as np
import pytest

from banding_removal.data.mask_rules import RULES
from banding_removal.data.masks import Mask, MaskSampler, seeded_by_draw, seeded_by_name
from tests.support.parity.compare import load_json

KINDS = list(RULES)
WIDTHS = [64, 65, 71]


def sampler(kind: Any, acceleration: int = 4, acs: float | None = None) -> MaskSampler:
    default = 0.1 if kind.endswith("_fraction") else 6
    return MaskSampler(
        kind=kind, accelerations=(acceleration,), acs=(default if acs is None else acs,)
    )


def rng(seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState(seed)


def lines(mask: Mask) -> list[int]:
    return np.flatnonzero(mask.columns).tolist()


@pytest.mark.parametrize(
    ("kind", "width", "acceleration", "acs", "offset", "expected"),
    [
        # 1::4, and the centre 5, 6
        ("equispaced", 12, 4, 2, 1, [1, 5, 6, 9]),
        # 2::4, and the centre 5, 6, 7 around column 13 // 2
        ("equispaced", 13, 4, 3, 2, [2, 5, 6, 7, 10]),
        ("equispaced", 12, 4, 2, 5, [5, 6, 9]),
        ("equispaced_v2", 12, 4, 2, 5, [1, 5, 6, 9]),
        # frequencies 1, 5, -3, -7 with zero at column 8, and the centre 7, 8
        ("magic", 16, 4, 2, 0, [1, 5, 7, 8, 9, 13]),
        # frequencies 3, 7, -1, -5
        ("magic", 16, 4, 2, 1, [3, 7, 8, 11, 15]),
        # odd width: frequencies -6 .. 6 with zero at column 6
        ("magic", 13, 4, 1, 0, [3, 6, 7, 11]),
        ("magic", 13, 4, 1, 1, [1, 5, 6, 9]),
        # as published, the starts are those of acceleration 4: frequencies 1, 7, -3
        ("magic", 16, 6, 2, 0, [5, 7, 8, 9, 15]),
        # 3::3 (odd) against 3 % 3 = 0 (even)
        ("magic", 12, 3, 1, 3, [2, 5, 6, 9]),
        ("magic_v2", 12, 3, 1, 3, [0, 3, 6, 7, 10]),
        # frequencies 2 + 8 j and -2 + 8 j with zero at column 8
        ("quadrature", 16, 8, 2, 0, [2, 7, 8, 10]),
        ("quadrature", 16, 8, 2, 1, [6, 7, 8, 14]),
        # frequencies 2 + 6 j with zero at column 9
        ("quadrature", 18, 6, 2, 0, [5, 8, 9, 11, 17]),
        # 2 centre lines, spacing 4 (2 - 20) / (2 * 4 - 20) = 6: 5 = 20 / 4 columns
        ("equispaced_fraction", 20, 4, 0.1, 1, [1, 7, 9, 10, 13]),
        # frequencies 1, 7, -3, -9 with zero at column 10
        ("magic_fraction", 20, 4, 0.1, 0, [1, 7, 9, 10, 11, 17]),
        # acceleration 1 measures everything
        ("random", 9, 1, 2, None, list(range(9))),
        ("random_fraction", 9, 1, 0.2, None, list(range(9))),
        ("quadrature", 9, 1, 2, 0, list(range(9))),
    ],
)
def test_small_masks_have_the_lines_worked_out_by_hand(
    kind: str, width: int, acceleration: int, acs: float, offset: int | None, expected: list[int]
) -> None:
    mask = sampler(kind, acceleration, acs).draw(width, rng(), offset=offset)
    assert lines(mask) == expected


def test_random_masks_take_the_columns_whose_draw_is_below_the_probability() -> None:
    generator = rng(3)
    generator.randint(0, 1), generator.randint(0, 1)  # centre and acceleration come first
    expected = generator.uniform(size=40) < (40 / 4 - 4) / (40 - 4)
    expected[18:22] = True
    mask = sampler("random", 4, 4).draw(40, rng(3))
    assert np.array_equal(mask.columns, expected)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_centre_is_kept_by_every_kind(kind: str, width: int) -> None:
    for seed in range(8):
        mask = sampler(kind).draw(width, rng(seed))
        assert mask.columns.shape == (width,)
        assert mask.columns.dtype == np.bool_
        assert mask.acs_lines == (round(0.1 * width) if kind.endswith("_fraction") else 6)
        first = (width - mask.acs_lines + 1) // 2
        assert mask.columns[first : first + mask.acs_lines].all()
        assert mask.columns[width // 2]
        assert not mask.columns.all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_sampled_and_the_rest_is_as_without_it(kind: str, width: int) -> None:
    left, right = 9, width - 12
    outside = 0
    for seed in range(8):
        whole = sampler(kind).draw(width, rng(seed)).columns
        cut = sampler(kind).draw(width, rng(seed), acquired=(left, right)).columns
        outside += whole[:left].sum() + whole[right:].sum()
        assert not cut[:left].any()
        assert not cut[right:].any()
        assert np.array_equal(cut[left:right], whole[left:right])
    assert outside > 0


def test_padding_wins_over_the_centre() -> None:
    mask = sampler("equispaced", 4, 6).draw(16, rng(), offset=0, acquired=(7, 10))
    assert lines(mask) == [7, 8, 9]


@pytest.mark.parametrize("kind", KINDS)
def test_same_file_gets_the_same_mask_and_other_files_get_others(kind: str) -> None:
    names = [f"file{i}.h5" for i in range(40)]

    def draw_all() -> list[bytes]:
        return [sampler(kind).draw(64, seeded_by_name(n)).columns.tobytes() for n in names]

    first = draw_all()
    np.random.seed(1)  # the global generator must not matter
    assert draw_all() == first
    assert len(set(first)) > 1


@pytest.mark.parametrize(
    ("kind", "count"),
    # as many masks as there are offsets that the kind distinguishes; two names share no random mask
    [
        ("magic", 2),
        ("quadrature", 2),
        ("equispaced", 4),
        ("equispaced_fraction", 4),
        ("random", 40),
    ],
)
def test_files_share_the_few_masks_of_regular_kinds_and_no_random_mask(
    kind: str, count: int
) -> None:
    masks = [sampler(kind).draw(64, seeded_by_name(f"file{i}.h5")) for i in range(40)]
    assert len({mask.columns.tobytes() for mask in masks}) == count


def test_name_seeds_with_its_characters() -> None:
    expected = np.random.RandomState((97, 46, 104, 53)).uniform(size=3)
    assert np.array_equal(seeded_by_name("a.h5").uniform(size=3), expected)


def test_draws_depend_on_each_of_seed_epoch_name_and_slice() -> None:
    keys = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1)]
    assert len({float(seeded_by_draw(*key).uniform()) for key in keys}) == len(keys)
    assert seeded_by_draw(*keys[1]).uniform() == seeded_by_draw(*keys[1]).uniform()


@pytest.mark.parametrize("width", [4, 5, 16, 17, 30, 31, 368, 371])
def test_quadrature_equals_magic_at_acceleration_4(width: int) -> None:
    for offset in range(8):
        magic = sampler("magic", 4, 2).draw(width, rng(), offset=offset)
        quadrature = sampler("quadrature", 4, 2).draw(width, rng(), offset=offset)
        assert lines(magic) == lines(quadrature)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("width", [64, 65])
@pytest.mark.parametrize("acceleration", [2, 3, 4, 6, 8])
def test_quadrature_spaces_its_lines_by_the_acceleration_across_zero_frequency(
    acceleration: int, width: int, offset: int
) -> None:
    mask = sampler("quadrature", acceleration, 1).draw(width, rng(), offset=offset)
    frequencies = np.flatnonzero(mask.columns) - width // 2
    frequencies = frequencies[frequencies != 0]  # the one centre line
    assert set(np.diff(frequencies)) == {acceleration}
    assert frequencies[0] < -(width // 2) + acceleration
    assert frequencies[-1] >= (width + 1) // 2 - acceleration
    quarter = max(1, round(acceleration / 4))
    assert (quarter if offset == 0 else -quarter) in frequencies


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("acceleration", [3, 4, 6, 8])
def test_quadrature_lines_are_not_mirror_images_of_each_other(
    acceleration: int, offset: int
) -> None:
    mask = sampler("quadrature", acceleration, 1).draw(65, rng(), offset=offset)
    mirrored = mask.columns & mask.columns[::-1]
    assert np.flatnonzero(mirrored).tolist() == [32]


@pytest.mark.parametrize("width", [320, 368, 371])
@pytest.mark.parametrize(("acceleration", "fraction"), [(4, 0.08), (8, 0.04), (4, 0.16)])
@pytest.mark.parametrize("kind", ["equispaced_fraction", "magic_fraction", "random_fraction"])
def test_fractions_keep_the_overall_rate(
    kind: str, acceleration: int, fraction: float, width: int
) -> None:
    draw = sampler(kind, acceleration, fraction).draw
    measured = [draw(width, rng(seed)).columns.sum() for seed in range(100)]
    assert np.mean(measured) == pytest.approx(width / acceleration, abs=3)


def test_random_keeps_the_overall_rate() -> None:
    draw = sampler("random", 4, 16).draw
    measured = [draw(368, rng(seed)).columns.sum() for seed in range(200)]
    assert np.mean(measured) == pytest.approx(92, abs=2)
    assert np.std(measured) > 4


def test_all_accelerations_and_all_centres_are_drawn() -> None:
    several = MaskSampler(kind="equispaced", accelerations=(4, 8), acs=(2, 6))
    drawn = set()
    for seed in range(60):
        mask = several.draw(64, rng(seed), offset=0)
        spacing = int(np.diff(np.flatnonzero(mask.columns))[0])
        drawn.add((mask.acs_lines, spacing))
        first = (64 - mask.acs_lines + 1) // 2
        assert lines(mask) == sorted(
            {*range(0, 64, spacing), *range(first, first + mask.acs_lines)}
        )
    assert drawn == {(2, 4), (2, 8), (6, 4), (6, 8)}


def test_all_offsets_below_the_acceleration_are_drawn() -> None:
    firsts = {lines(sampler("equispaced", 6, 2).draw(64, rng(seed)))[0] for seed in range(80)}
    assert firsts == set(range(6))


@pytest.mark.parametrize(
    ("kind", "accelerations", "acs", "message"),
    [
        ("spiral", (4,), (16,), "spiral"),
        ("magic", (), (16,), "accelerations"),
        ("magic", (4, 0), (16,), "accelerations"),
        ("magic", (4,), (), "centre lines"),
        ("magic", (4,), (16, 0), "centre lines"),
        ("magic", (4,), (-2,), "centre lines"),
        ("magic", (4,), (0.08,), "whole numbers"),
        ("random_fraction", (4,), (16,), "fractions"),
        ("magic_fraction", (4,), (0.08, 1), "fractions"),
        ("equispaced_fraction", (4,), (-0.1,), "centre lines"),
        ("fastmri_random_fraction", (4, 8), (0.08,), "as many centre fractions as accelerations"),
    ],
)
def test_bad_arguments_are_refused(
    kind: Any, accelerations: tuple[int, ...], acs: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MaskSampler(kind=kind, accelerations=accelerations, acs=acs)


@pytest.mark.parametrize(
    ("kind", "acs", "message"),
    [
        ("magic", 33, "33 centre lines do not fit into 32"),
        ("random", 33, "33 centre lines do not fit into 32"),
    ],
)
def test_more_centre_lines_than_columns_are_refused(kind: str, acs: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(kind, 4, acs).draw(32, rng(), offset=None)


@pytest.mark.parametrize(
    ("kind", "acs", "lines_of_centre", "warned"),
    [
        ("random", 8, 8, False),  # exactly the rate
        ("random", 16, 16, True),
        ("random", 32, 32, True),
        ("random_fraction", 0.5, 16, True),
        ("random_fraction", 0.99, 32, True),
        ("fastmri_random_fraction", 0.5, 16, True),
        ("fastmri_equispaced_fraction", 0.25, 8, False),
        ("fastmri_equispaced_fraction", 0.5, 16, True),
        ("equispaced_fraction", 0.25, 8, False),
        ("equispaced_fraction", 0.5, 16, True),
        ("magic_fraction", 0.5, 16, True),
        ("magic_fraction", 0.99, 32, True),
    ],
)
def test_a_centre_that_is_all_that_the_rate_allows_is_measured_alone(
    kind: str, acs: float, lines_of_centre: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for offset in (None, 1):
        mask = sampler(kind, 4, acs).draw(32, rng(), offset=offset)
        assert mask.acs_lines == lines_of_centre
        first = (32 - lines_of_centre + 1) // 2
        assert lines(mask) == list(range(first, first + lines_of_centre))
    sampler(kind, 4, acs).check(32)
    assert (f"{lines_of_centre} centre lines of 32 columns are more" in caplog.text) == warned


def test_the_centre_of_48_random_columns_at_acceleration_8_is_measured_alone() -> None:
    assert lines(sampler("random", 8, 16).draw(48, rng())) == list(range(16, 32))


@pytest.mark.parametrize("kind", ["random", "equispaced_fraction"])
def test_masks_of_a_file_are_column_by_column_those_of_the_public_package(kind: str) -> None:
    rows = [row for row in load_json("varnet_masks") if row["kind"] == kind]
    assert len({(row["name"], row["width"], row["acs_lines"]) for row in rows}) > 20
    for row in rows:
        ours = f"fastmri_{kind.removesuffix('_fraction')}_fraction"
        masks = MaskSampler(
            kind=ours, accelerations=tuple(row["accelerations"]), acs=tuple(row["fractions"])
        )
        # The package takes no start from the data.
        mask = masks.draw(row["width"], seeded_by_name(row["name"]), offset=3)
        assert mask.acs_lines == row["acs_lines"]
        columns = f"{int(row['columns'], 16):0{row['width']}b}"
        assert "".join("01"[int(column)] for column in mask.columns) == columns
