"""From a scanner's raw data to metrics: import, reconstruct and evaluate, as commands."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from banding_removal.config.settings import Settings
from tests.support.predictors import save_predictor

pytest.importorskip("ismrmrd", reason="needs the package ismrmrd")

from tests.support.raw_files import RawFile, coil_images, kspace_of

REPOSITORY = Path(__file__).resolve().parents[1]
SIZE = (64, 32)
TRAINED = Settings(device="cpu", cascades=1, chans=2, pools=1, sens_chans=2, acs_lines=(6,))


def command(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "scripts" / f"{name}.py"
    return subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, check=False
    )


def test_raw_data_are_imported_reconstructed_and_evaluated(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        kspace = kspace_of(coil_images(size=SIZE, seed=number))
        kspace += 0.01 * rng.standard_normal(kspace.shape)
        RawFile(size=SIZE).add_image(kspace).write(raw / f"scan{number}.h5")
    RawFile(size=SIZE, header={"trajectory": "radial"}).add_image(kspace).write(raw / "radial.h5")
    volumes, images = tmp_path / "volumes", tmp_path / "images"
    done = command("import_mrd", f"raw={raw}", f"output={volumes}")
    assert done.returncode == 2  # the other two are imported
    assert "1 unusable volume(s)" in done.stderr and "trajectory is radial" in done.stderr
    assert done.stdout.count("2 slices, 3 coils, 64 x 32, fully sampled") == 2
    assert "noise scan: not used" in done.stdout

    run = save_predictor(tmp_path / "run", TRAINED)
    words = [f"volumes={volumes}", "device=cpu"]
    done = command(
        "reconstruct", f"checkpoint={run}", f"output={images}", "orientation=both", *words
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (images / "y").glob("*.h5")) == ["scan0.h5", "scan1.h5"]
    done = command(
        "evaluate",
        f"sets={{a: {images}}}",
        f"output={tmp_path / 'report'}",
        f"logs={tmp_path / 'logs'}",
        "probe=false",
        *words,
    )
    assert done.returncode == 0, done.stderr
    assert "# Evaluation on 2 volumes, 4 slices" in done.stdout
