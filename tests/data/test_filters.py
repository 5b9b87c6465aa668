from dataclasses import replace
from typing import Any

import pytest

from banding_removal.data.filters import VolumeFilter
from banding_removal.data.volume import Volume

VOLUME = Volume(
    path="/data/a.h5",
    bytes=1,
    mtime_ns=1,
    slices=35,
    coils=15,
    height=640,
    width=368,
    target_key="reconstruction_rss",
    target_size=(320, 320),
    data_range=1e-4,
    acquisition="CORPD_FBK",
    scanner="Aera",
    field_strength=1.494,
    acquired=(0, 368),
    recon_size=(320, 320),
    measured=None,
)
# What a header or file may leave out.
BARE = replace(
    VOLUME, coils=None, target_key=None, target_size=None, data_range=None, field_strength=None
)


def numbered(count: int) -> list[Volume]:
    return [replace(VOLUME, path=f"/data/{i:03}.h5") for i in range(count)]


@pytest.mark.parametrize(
    ("condition", "field", "kept", "removed"),
    [
        ({"magnet": 1.5}, "field_strength", [0.5, 1.494, 2.5], [0.49, 2.51, 2.893, None]),
        ({"magnet": 3.0}, "field_strength", [2.893, 2.0, 4.0], [1.494, 1.99, 7.0, None]),
        ({"width": (300, 740)}, "width", [300, 368, 740], [299, 741]),
        ({"width": (None, 740)}, "width", [1, 740], [741]),
        ({"width": (300, None)}, "width", [300, 9999], [299]),
        ({"height": (640, 640)}, "height", [640], [639, 641]),
        (
            {"target_height": (320, 400)},
            "target_size",
            [(320, 1), (400, 1)],
            [(319, 350), (401, 350), None],
        ),
        (
            {"target_width": (320, 400)},
            "target_size",
            [(1, 320), (1, 400)],
            [(350, 319), (350, 401), None],
        ),
        ({"square_target": True}, "target_size", [(320, 320)], [(320, 322), None]),
        ({"coils": (2, 15)}, "coils", [2, 15], [1, 16, None]),
        ({"coils": (None, 1)}, "coils", [1, None], [2]),
        (
            {"acquisitions": ("CORPD_FBK", "AXT1")},
            "acquisition",
            ["CORPD_FBK", "AXT1"],
            ["CORPDFS_FBK", "AXT1POST", "unknown"],
        ),
        ({"scanners": ("Aera", "Skyra")}, "scanner", ["Aera", "Skyra"], ["Prisma", "unknown"]),
        (
            {"acceleration": 4},
            "measured",
            ["1000" * 7, "11" + "0" * 6],
            ["10000000" * 4, "10" * 8, "1111", "0000", None],
        ),
    ],
)
def test_each_condition_keeps_what_is_on_its_border_and_removes_what_is_past_it(
    condition: dict[str, Any], field: str, kept: list[Any], removed: list[Any]
) -> None:
    volumes = [replace(VOLUME, **{field: value}) for value in kept + removed]
    passed = VolumeFilter(**condition).apply(volumes, seed=0)
    assert [getattr(volume, field) for volume in passed] == kept


def test_unset_conditions_keep_everything() -> None:
    volumes = [VOLUME, BARE, replace(VOLUME, target_size=(3, 4), measured="0110", width=9999)]
    assert VolumeFilter().apply(volumes, seed=0) == volumes


def test_all_conditions_must_hold() -> None:
    volumes = [
        VOLUME,
        replace(VOLUME, width=741),
        replace(VOLUME, field_strength=2.893),
        replace(VOLUME, target_size=(320, 300)),
        replace(VOLUME, path="/data/z.h5"),
    ]
    paper = VolumeFilter(magnet=1.5, width=(None, 740), square_target=True)
    assert paper.apply(volumes, seed=0) == [volumes[0], volumes[4]]


def test_fraction_is_the_same_for_a_seed_and_differs_between_seeds() -> None:
    volumes, part = numbered(20), VolumeFilter(fraction=0.4)
    chosen = part.apply(volumes, seed=3)
    assert part.apply(volumes, seed=3) == chosen
    assert len({tuple(v.path for v in part.apply(volumes, seed=s)) for s in range(10)}) > 5


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.4, 8), (0.31, 6), (0.001, 1), (0.99, 20), (1.0, 20)]
)
def test_fraction_keeps_its_share_in_order_and_at_least_one(fraction: float, count: int) -> None:
    volumes = numbered(20)
    chosen = VolumeFilter(fraction=fraction).apply(volumes, seed=0)
    assert len(set(chosen)) == len(chosen) == count
    assert chosen == sorted(chosen, key=lambda volume: volume.path)
    assert set(chosen) <= set(volumes)


def test_fraction_is_of_what_the_other_conditions_leave() -> None:
    volumes = numbered(10) + [replace(v, width=900) for v in numbered(30)]
    chosen = VolumeFilter(width=(None, 740), fraction=0.5).apply(volumes, seed=0)
    assert len(chosen) == 5
    assert all(volume.width == 368 for volume in chosen)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        VolumeFilter(fraction=fraction)


def test_nothing_left_names_the_conditions_and_what_each_removed() -> None:
    volumes = [VOLUME, replace(VOLUME, width=900), replace(VOLUME, width=901)]
    nothing = VolumeFilter(width=(None, 740), height=(None, 740), magnet=7, scanners=("Aera",))
    with pytest.raises(ValueError, match=r"none of 3 volumes: magnet removed 3\."):
        nothing.apply(volumes, seed=0)
    nothing = VolumeFilter(width=(None, 740), acquisitions=("AXT1",), scanners=("Aera",))
    with pytest.raises(ValueError, match=r"width removed 2, acquisitions removed 1\."):
        nothing.apply(volumes, seed=0)


def test_what_was_removed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="banding_removal.data.filters")
    volumes = [*numbered(4), replace(VOLUME, width=900)]
    VolumeFilter(width=(None, 740), fraction=0.5).apply(volumes, seed=0)
    assert "2 of 5 volumes kept: width removed 1, fraction removed 2" in caplog.text


def test_filters_and_volumes_are_unchanged_by_use() -> None:
    train = VolumeFilter(magnet=1.5, width=(None, 740), square_target=True, fraction=0.5)
    val = VolumeFilter(magnet=1.5, square_target=True)
    wide = replace(VOLUME, width=900)
    train_volumes, val_volumes = numbered(4), [*numbered(2), wide]
    before = replace(train), replace(val), list(train_volumes), list(val_volumes)
    train.apply(train_volumes, seed=0)
    assert wide in val.apply(val_volumes, seed=0)
    assert len(train.apply(val_volumes, seed=0)) == 1
    assert (train, val) == before[:2]
    assert (train_volumes, val_volumes) == before[2:]
