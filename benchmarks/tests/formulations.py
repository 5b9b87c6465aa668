"""Players in two formulations with the same weights, and batches for their steps, for tests."""

from typing import Any

import torch

from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch, Example, collate
from banding_removal.data.masks import MaskSampler, seeded_by_name
from banding_removal.training.players import Players, make_players
from banding_removal.training.schedule import settings_of_step
from banding_removal.training.step import adversary_step, predictor_step
from benchmarks import plain
from benchmarks.step_variants import numerics_of

NETWORK: dict[str, Any] = {"cascades": 2, "chans": 4, "pools": 2, "sens_chans": 2}
CPU = torch.device("cpu")


def batch_of_two(height: int, width: int, coils: int = 3, target: int = 26) -> Batch:
    """Upright and transposed, each with a mask and a number of centre lines of its own."""
    generator = torch.Generator().manual_seed(height)
    examples = []
    for number, acs_lines in enumerate((4, 7)):
        name = f"volume{number}"
        mask = MaskSampler(kind="magic", accelerations=(4,), acs=(acs_lines,)).draw(
            width, seeded_by_name(name), offset=number
        )
        kspace = torch.randn(coils, height, width, dtype=torch.complex128, generator=generator)
        image = torch.rand(1, target, target, dtype=torch.float64, generator=generator)
        examples.append(
            Example(
                measured=1e-4 * kspace[..., torch.from_numpy(mask.columns)],
                mask=torch.from_numpy(mask.columns)[None, None],
                acs_lines=mask.acs_lines,
                target=3e-4 * image,
                data_range=4e-4,
                rotated=bool(number),
                name=name,
                slice_index=0,
            )
        )
    return collate(examples)


def both_formulations() -> tuple[Settings, Players, plain.PlainPlayers]:
    """The project's players and plain ones with the same weights, in double precision."""
    torch.manual_seed(0)
    settings = Settings(
        device="cpu",
        stage="train",
        adversary="shallow",
        adversary_chans=6,
        **NETWORK,
        **numerics_of("ours"),
    )
    players = make_players(settings, CPU)
    assert players.adversary is not None
    for network in (players.predictor, players.adversary):
        network.double()
        for weight in network.parameters():  # none of them 0 or 1, whose place would not matter
            weight.data += 0.05 * torch.randn_like(weight)
    own = plain.PlainPlayers.of(
        plain.PlainPredictor(**NETWORK).double(), plain.ShallowAdversary(6).double()
    )
    assert own.adversary is not None
    plain.copy_weights(players.predictor, own.predictor)
    plain.copy_weights(players.adversary, own.adversary)
    return settings, players, own


def both_acts(settings: Settings, players: Players, batch: Batch) -> dict[str, float]:
    """The gradients of a step, which the players then have, and its metrics."""
    step = settings_of_step(settings, epochs=0, step=1)
    reconstructions, metrics = predictor_step(players, [batch], step)
    metrics |= adversary_step(players, reconstructions, step)
    return {name: value.item() for name, value in metrics.items()}
