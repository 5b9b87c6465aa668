from dataclasses import replace

import torch

from banding_removal.data.phantom.scan import make_volume
from banding_removal.data.phantom.spec import MEDIUM
from banding_removal.metrics.low_signal import low_signal_regions, volume_scale
from banding_removal.pictures.zoom import low_signal_part


def test_the_zoom_is_where_most_dark_anatomy_is() -> None:
    targets = torch.from_numpy(make_volume(replace(MEDIUM, slices=4), 3).target)
    target, scale = targets[2], volume_scale(targets)
    part = low_signal_part(target, scale)
    anatomy = low_signal_regions(target, scale).anatomy
    inside = int(anatomy[part].sum())
    height, width = target[part].shape
    assert (height, width) == (51, 51)
    others = [
        int(anatomy[top : top + height, left : left + width].sum())
        for top in range(0, 128 - height, 7)
        for left in range(0, 128 - width, 7)
    ]
    assert inside >= max(others) > 0
    blank = low_signal_part(torch.zeros(40, 30), 1.0)
    assert torch.zeros(40, 30)[blank].shape == (16, 12)
