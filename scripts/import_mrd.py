"""Import raw data of a scanner (ISMRMRD / MRD) as volumes in the fastMRI layout.

    ipython scripts/import_mrd.py raw=/data/raw output=/data/knee/multicoil_test
    ipython scripts/import_mrd.py raw=scan.h5 output=/data/knee/multicoil_val acquisition=CORPD_FBK

Scans must be 2-D and Cartesian, fully sampled or undersampled along phase encode. Each contrast and
repetition becomes a volume. Patient information in the header is left out. The package ismrmrd is
needed. More: docs/raw_data.md.
"""

from dataclasses import dataclass
from pathlib import Path

from banding_removal.command_line import typed_settings, user_errors
from banding_removal.config.settings import REPOSITORY
from banding_removal.data.mrd_import import ImportedScan, import_scan
from banding_removal.data.volume import SUFFIX, VolumeError
from banding_removal.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What to import, and where to."""

    raw: Path = Path("/path/to/raw")  # a folder of *.h5 files, or one of them
    output: Path = REPOSITORY / "datasets" / "imported"  # folder; nothing in it is overwritten
    dataset: str = "dataset"  # name of the group in the raw file that holds the scan
    whiten: bool = True  # whiten the coils with the noise scan, if there is one
    acquisition: str | None = None  # name of the contrast; null: the protocol in the header


def main(settings: ImportSettings) -> None:
    """Import all files; those that fail are named at the end."""
    found = sorted(settings.raw.glob("*" + SUFFIX)) if settings.raw.is_dir() else [settings.raw]
    if not found or not found[0].exists():
        raise ConfigError(f"raw: no *{SUFFIX} file at {settings.raw}")
    problems = []
    for path in found:
        try:
            imported = import_scan(
                path,
                settings.output,
                dataset=settings.dataset,
                whiten=settings.whiten,
                acquisition=settings.acquisition,
            )
        except (VolumeError, FileExistsError) as error:
            problems.append(str(error))
            continue
        print(report(path, imported))
    if problems:
        raise VolumeError.of_all(problems)


def report(path: Path, imported: ImportedScan) -> str:
    """What was imported and what was left out, in words."""
    lines = [f"{path}: {len(imported.volumes)} volume(s), averages: {imported.averages}"]
    lines += [
        f"  {volume.path}: {volume.slices} slices, {volume.coils} coils, "
        f"{volume.height} x {volume.width}, "
        + (
            "fully sampled"
            if volume.measured is None
            else f"1 in {volume.acceleration} columns measured: no target"
        )
        for volume in imported.volumes
    ]
    lines.append(f"  noise scan: {'used to whiten the coils' if imported.whitened else 'not used'}")
    lines += [
        f"  {name} lacks {missing} of the header: was the scan interrupted?"
        for name, missing in imported.missing.items()
    ]
    lines += [f"  left out: {number} {kind}" for kind, number in imported.left_out.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    with user_errors():
        main(typed_settings(ImportSettings()))
