"""The banding of somebody else's network, removed with one command: public VarNet, then stage 2.

    python -m benchmarks.varnet_chain                   (needs `pip install fastmri`)
    python -m benchmarks.varnet_chain steps=2000 epochs=25 'recipes=[none,direct]'

A small `fastmri.models.VarNet` is trained on the phantom by the loop below, as its own package
trains it (SSIM, Adam, masks drawn at random, no transposed slices), and saved as the public weights
are: a plain state dict. Then `scripts/train.py init_from=...` removes its banding, with the
direct loss and with the adversary, and, as a control, with neither (`recipe=none`). All are
measured on the validation volumes with masks that are fixed by file names.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from banding_removal.command_line import user_errors
from banding_removal.config.bounds import bounded, check_bounds
from banding_removal.config.overrides import from_words
from banding_removal.config.settings import REPOSITORY, Recipe
from banding_removal.data.batch import collate
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.index import index_folder
from banding_removal.data.masks import MaskSampler
from banding_removal.data.operators import crop_to_smaller
from banding_removal.data.phantom.files import write_dataset
from banding_removal.data.phantom.spec import DEMO
from banding_removal.evaluation.evaluate import evaluate
from banding_removal.evaluation.image_sets import path_set, reference_volumes
from banding_removal.evaluation.table import overview
from banding_removal.runs.build import choose_device
from banding_removal.runs.folder import latest_run

MASKS = MaskSampler(kind="fastmri_equispaced_fraction", accelerations=(4,), acs=(0.1,))
PUBLIC = "public_state_dict.pt"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What is run."""

    folder: Path = REPOSITORY / "datasets" / "varnet_chain"
    train_volumes: int = bounded(12, above=0)
    val_volumes: int = bounded(4, above=0)
    steps: int = bounded(400, above=0)  # of the public network, one slice each
    lr: float = bounded(1e-3, above=0)  # of its Adam
    epochs: int = bounded(10, above=0)  # of stage 2
    # The adversary, whose steps take both orientations of a slice, gets half of it.
    epoch_fraction: float = bounded(0.5, above=0, at_most=1)
    recipes: tuple[Recipe, ...] = ("none", "direct", "adversary")
    words: tuple[str, ...] = ()  # more settings of stage 2, such as lr=5e-3
    seed: int = bounded(0, at_least=0)
    device: str = "auto"

    def __post_init__(self) -> None:
        check_bounds(self)


def train_public(chain: Chain, path: Path) -> None:
    """Train a `fastmri.models.VarNet` and save its state dict."""
    from fastmri import SSIMLoss
    from fastmri.models import VarNet

    torch.manual_seed(chain.seed)
    device = choose_device(chain.device)
    network = VarNet(num_cascades=4, chans=8, pools=2, sens_chans=4, sens_pools=2).to(device)
    similarity = SSIMLoss().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=chain.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, chain.steps)
    dataset = SliceDataset(
        index_folder(chain.folder / "data" / "multicoil_train", cache_folder=chain.folder),
        MASKS,
        seed=chain.seed,
        redraw_masks=True,
    )
    sampler = RandomSampler(dataset, replacement=True, num_samples=chain.steps)
    begun, total = time.monotonic(), 0.0
    for step, batch in enumerate(DataLoader(dataset, sampler=sampler, collate_fn=collate), start=1):
        batch = batch.to(device)
        image = network(torch.view_as_real(batch.masked_kspace), batch.mask[..., None])[:, None]
        loss = similarity(*crop_to_smaller(image, batch.target), batch.data_range)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 50 == 0:
            seconds = (time.monotonic() - begun) / step
            print(f"step {step}: mean loss {total / 50:.4f}, {seconds:.2f} s a step", flush=True)
            total = 0.0
    torch.save(network.state_dict(), path)


def stage_2(chain: Chain, public: Path, recipe: Recipe) -> Path:
    """Run `scripts/train.py` from the public weights; returns the run's folder."""
    logs = chain.folder / "logs"
    fraction = chain.epoch_fraction / (2 if recipe == "adversary" else 1)
    command = [
        *(sys.executable, str(REPOSITORY / "scripts" / "train.py"), f"init_from={public}"),
        *(f"data_path={chain.folder / 'data'}", f"logs={logs}", f"name={recipe}", "nproc=1"),
        *(f"device={chain.device}", "workers=0", f"epochs={chain.epochs}", f"seed={chain.seed}"),
        *(f"recipe={recipe}", f"epoch_fraction={fraction}", f"validate_every={chain.epochs}"),
        *("mask=fastmri_equispaced_fraction", "acs_fractions=[0.1]", "train_filter.magnet=null"),
        *("val_filter.magnet=null", *chain.words),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, check=True, env=environment)
    run = latest_run(logs, recipe)
    assert run is not None, "train.py has made it"
    return run


def main(chain: Chain) -> None:
    """Train the public network if it is not there, then stage 2 by each recipe; print the table."""
    data, public = chain.folder / "data", chain.folder / PUBLIC
    counts: dict[str, Any] = {
        "train_volumes": chain.train_volumes,
        "val_volumes": chain.val_volumes,
    }
    write_dataset(data, DEMO, **counts, seed=chain.seed)
    if not public.exists():
        train_public(chain, public)
    sets = {"public VarNet": public}
    for recipe in chain.recipes:
        sets[recipe] = stage_2(chain, public, recipe)
    files = index_folder(data / "multicoil_val", cache_folder=chain.folder)
    device = choose_device(chain.device)
    found = evaluate(
        [
            path_set(name, path, files, slice_range=(None, None), device=device, masks=MASKS)
            for name, path in sets.items()
        ],
        reference_volumes(files),
        probe_steps=None,
        device=device,
    )
    print(overview(found))


if __name__ == "__main__":
    with user_errors():
        main(from_words(Chain(), sys.argv[1:]))
