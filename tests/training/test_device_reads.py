"""A step gives a GPU its work without waiting for it: no value of a tensor decides what comes next.

Everything runs on the CPU here, and every operator is watched. On a GPU, the same operators would
make the CPU wait until all that was started before them is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from banding_removal.config.recipes import ADVERSARY, DIRECT, PAPER
from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch, collate
from banding_removal.data.dataset import Draw, SliceDataset
from banding_removal.model import layers
from banding_removal.model.predictors import reconstruct
from banding_removal.training.muon import Muon
from banding_removal.training.players import Players, make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import (
    adversary_step,
    clip_all_gradients,
    predictor_step,
    train_step,
)

CPU = torch.device("cpu")
# The value or the shape of what they return depends on the values that they are given.
READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


# On a CPU, these do not show as operators.
COPIES = ("tolist", "numpy", "cpu")


class Watched(TorchDispatchMode):
    """Fails where a tensor's values reach the CPU, or where one is made of the CPU's numbers.

    Copies of integers are allowed: what is drawn at random is drawn on the CPU.
    """

    def __init__(self, copies: Sequence[str] = COPIES) -> None:
        super().__init__()
        self._copies = {name: getattr(Tensor, name) for name in copies}

    def __enter__(self) -> Self:
        """Watch."""
        for name, copy in self._copies.items():
            setattr(Tensor, name, _without_floats(name, copy))
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        """Watch no longer."""
        super().__exit__(*error)
        for name, copy in self._copies.items():
            setattr(Tensor, name, copy)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator."""
        assert not any(tag in func.tags for tag in READS), f"{func} reads values"
        assert func != torch.ops.aten.lift_fresh.default, "a tensor of Python's numbers"
        return func(*args, **(kwargs or {}))


def _without_floats(name: str, copy: Callable[..., Any]) -> Callable[..., Any]:
    def checked(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert not x.is_floating_point(), f"{name} reads values"
        return copy(x, *args, **kwargs)

    return checked


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last])
def _as_on_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "memory_format", lambda _: request.param)


def group_of(train_set: SliceDataset, *turned: bool) -> list[Batch]:
    """A batch of one slice in each orientation."""
    return [collate([train_set[Draw(epoch=0, index=1, rotated=rotated)]]) for rotated in turned]


def act(players: Players, settings: Settings, group: list[Batch]) -> dict[str, Tensor]:
    """What a step does before it reads its metrics; penalties are in every step."""
    step = settings_of_step(settings, epochs=0, step=1)
    reconstructions, metrics = predictor_step(players, group, step)
    if step.trains_adversary:
        metrics |= adversary_step(players, reconstructions, step)
    return metrics | clip_all_gradients(players, step)


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"precision": "bfloat16", "clip_grad_norm": 1.0},
        {"predictor": "varnet", "dropout": 0.1},
        {**DIRECT, "stage": "train"},
        {**PAPER, "stage": "train"},
        {**ADVERSARY, "stage": "train"},
    ],
    ids=["stage 1", "bfloat16", "varnet", "direct", "paper", "adversary"],
)
@pytest.mark.usefixtures("_as_on_a_gpu")
def test_both_acts_read_nothing(
    settings: Settings, train_set: SliceDataset, words: dict[str, Any]
) -> None:
    settings = replace(settings, **{**words, "adversary_chans": 8, "cascades": 2, "chans": 4})
    players = make_players(settings, CPU)
    turned = (False, True) if settings.paired else (True,)
    for _ in range(2):  # the second time, there are earlier reconstructions
        group = group_of(train_set, *turned)
        with Watched():
            metrics = act(players, settings, group)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert players.replay is None or len(players.replay.pairs) == 2


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_inference_reads_nothing_but_without_the_columns_it_has_to(
    settings: Settings, train_set: SliceDataset
) -> None:
    predictor = make_players(settings, CPU).predictor
    (batch,) = group_of(train_set, True)
    with torch.no_grad(), Watched():
        image = reconstruct(predictor, batch)
        with pytest.raises(AssertionError, match="nonzero"):
            predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
    assert torch.equal(image, predictor(batch.masked_kspace, batch.mask, batch.acs_lines))


@pytest.mark.parametrize(
    "read",
    [
        Tensor.item,
        bool,
        Tensor.nonzero,
        lambda x: x.new_tensor([1]),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
    ],
)
def test_what_is_watched_for_is_found(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError), Watched():
        read(torch.ones(1))


def test_a_step_reads_its_metrics_once(
    settings: Settings, train_set: SliceDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"stage": "train", "adversary_chans": 8, "accumulate": 2}
    settings = replace(settings, **{**PAPER, **small})
    players = make_players(settings, CPU)
    reads: list[Tensor] = []

    def read(x: Tensor) -> Any:
        reads.append(x)
        return x.numpy().tolist()

    monkeypatch.setattr(Tensor, "tolist", read)
    groups = [group_of(train_set, False), group_of(train_set, True)]
    with Watched(copies=("cpu",)):
        values = train_step(players, groups, settings_of_step(settings, epochs=0, step=1))
    assert len(reads) == 1
    assert {"loss", "grad_norm", "penalty", "adversary_grad_norm"} <= values.keys()


def test_muon_reads_nothing() -> None:
    network = nn.Sequential(*(nn.Conv2d(4, 4, 3, bias=False) for _ in range(3)))
    optimizer = Muon(network.parameters(), lr=0.02)
    network(torch.randn(1, 4, 16, 16)).sum().backward()
    before = [weight.clone() for weight in network.parameters()]
    with Watched():
        optimizer.step()
    assert not any(map(torch.equal, before, network.parameters()))
