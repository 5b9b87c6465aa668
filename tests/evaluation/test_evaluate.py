import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from banding_removal.config.overrides import from_words
from banding_removal.config.settings import Settings
from banding_removal.data.dataset import SliceDataset
from banding_removal.data.volume import Volume, VolumeError, read_volume
from banding_removal.errors import CheckpointError, ConfigError
from banding_removal.evaluation.evaluate import Evaluation, evaluate
from banding_removal.evaluation.figure import draw
from banding_removal.evaluation.image_sets import ImageSet, path_set, reference_volumes
from banding_removal.evaluation.report import claim_output, write_report
from banding_removal.evaluation.sets_settings import choose_volumes
from banding_removal.evaluation.settings import EvaluateSettings, evaluate_files
from banding_removal.evaluation.table import markdown
from banding_removal.metrics.banding import banding_of_slice
from banding_removal.metrics.image_quality import VolumeQuality, hfen
from banding_removal.metrics.low_signal import volume_scale
from banding_removal.metrics.slice_pair import SlicePair
from banding_removal.metrics.statistics import summarize
from banding_removal.processes.team import Team
from banding_removal.runs.build import build_predictor
from banding_removal.runs.checkpoint import load_checkpoint
from banding_removal.training.loop import train
from banding_removal.training.validation import Validator
from tests.support.fastmri_files import write_volume

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


@pytest.fixture
def files(tmp_path: Path) -> list[Volume]:
    """Three volumes of three slices, two contrasts, two scanners."""
    kinds = (("Aera", "CORPD_FBK"), ("Avanto", "CORPDFS_FBK"), ("Aera", "CORPDFS_FBK"))
    return [
        read_volume(
            write_volume(
                tmp_path / "volumes" / f"v{i}.h5",
                slices=3,
                size=(64, 64),
                target_size=(60, 60),
                scanner=scanner,
                acquisition=acquisition,
                seed=i,
            )
        )
        for i, (scanner, acquisition) in enumerate(kinds)
    ]


def targets_of(file: Volume) -> np.ndarray:
    with h5py.File(file.path) as content:
        return content["reconstruction_rss"][()]


def streaky(target: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions with streaks along x, and along y: lines of noise of 2 % of the maximum."""
    rng = np.random.default_rng(seed)
    lines = 0.02 * target.max() * rng.standard_normal((2, target.shape[0]))
    r_x, r_y = target + lines[0][:, None], target + lines[1][None, :]
    return r_x.astype(np.float32), r_y.astype(np.float32)


def streaky_slices(files: Sequence[Volume]) -> list[SlicePair]:
    slices = []
    for v, file in enumerate(files):
        targets = targets_of(file)
        for index, target in enumerate(targets):
            r_x, r_y = (torch.from_numpy(r) for r in streaky(target, 10 * v + index))
            slices.append(
                SlicePair(
                    name=file.name,
                    slice_index=index,
                    acquisition=file.acquisition,
                    data_range=float(targets.max()),
                    scale=volume_scale(targets),
                    target=torch.from_numpy(target),
                    along_x=r_x,
                    along_y=r_y,
                )
            )
    return slices


def write_folder(folder: Path, slices: Sequence[SlicePair], *, orientations: str = "xy") -> Path:
    """The images as another software would write them; `x`: a plain folder."""
    for axis in orientations:
        inside = folder / axis if len(orientations) > 1 else folder
        inside.mkdir(parents=True)
        for name in {item.name for item in slices}:
            images = [item.along_x if axis == "x" else item.along_y for item in slices]
            chosen = [r for item, r in zip(slices, images, strict=True) if item.name == name]
            with h5py.File(inside / name, "w") as file:
                file["reconstruction"] = np.stack([r.numpy() for r in chosen if r is not None])
    return folder


def image_set(slices: Sequence[SlicePair], name: str = "streaky") -> ImageSet:
    return ImageSet(name=name, origin="memory", slices=slices)


def evaluated(
    files: Sequence[Volume], *sets: ImageSet, probe_steps: int | None = None
) -> Evaluation:
    return evaluate(sets, reference_volumes(files), probe_steps=probe_steps)


def open_folder(path: Path, files: Sequence[Volume], name: str = "streaky") -> ImageSet:
    return path_set(name, path, files, slice_range=(None, None), device=CPU)


def test_metrics_are_those_computed_by_hand(files: list[Volume]) -> None:
    slices = streaky_slices(files)
    result = evaluated(files, image_set(slices)).sets[0]
    by_hand, qualities, edges = [], {}, {}
    for file in files:
        target = targets_of(file)
        data_range = torch.tensor([file.data_range], dtype=torch.float32)
        quality = VolumeQuality(data_range=float(data_range))
        of_file = [item for item in slices if item.name == file.name]
        edges[file.name] = float(
            np.mean([float(hfen(s.along_x[None, None], s.target[None, None])) for s in of_file])
        )
        for s in of_file:
            assert s.along_y is not None
            quality.add(s.along_x[None, None], s.target[None, None], data_range)
            by_hand.append(
                banding_of_slice(
                    s.along_x,
                    s.along_y,
                    s.target,
                    scale=volume_scale(target),
                    volume=s.name,
                    slice_index=s.slice_index,
                )
            )
        qualities[file.name] = quality.result()

    assert [item.banding for volume in result.volumes for item in volume.slices] == by_hand
    summary = summarize(by_hand)
    metrics = result.overall.metrics
    for region in ("low_signal", "background"):
        for name in ("contribution", "signed_excess", "along", "across", "auc"):
            expected = getattr(getattr(summary, region), name)
            metric = metrics[f"{region}.{name}"]
            assert (metric.value, metric.low, metric.high) == (
                expected.value,
                expected.low,
                expected.high,
            )
    assert metrics["low_signal.contribution"].value > 3  # the streaks are seen
    for name in ("ssim", "nmse", "psnr", "mse"):
        expected_mean = np.mean([getattr(quality, name) for quality in qualities.values()])
        assert metrics[name].value == pytest.approx(expected_mean, rel=1e-12)
    assert metrics["hfen"].value == pytest.approx(np.mean(list(edges.values())), rel=1e-12)


def test_a_folder_of_files_gives_the_metrics_of_the_same_images_in_memory(
    tmp_path: Path, files: list[Volume]
) -> None:
    slices = streaky_slices(files)
    folder = open_folder(write_folder(tmp_path / "other", slices), files)
    in_memory = evaluated(files, image_set(slices)).sets[0]
    on_disk = evaluated(files, folder).sets[0]
    assert on_disk.overall == in_memory.overall
    assert on_disk.groups == in_memory.groups


def test_slices_in_another_order_give_the_same_banding_and_probe(files: list[Volume]) -> None:
    slices = streaky_slices(files)
    first = evaluated(files, image_set(slices), probe_steps=2).sets[0].overall.metrics
    second = evaluated(files, image_set(slices[::-1]), probe_steps=2).sets[0].overall.metrics
    for name, metric in first.items():
        if not math.isnan(metric.value):
            assert second[name].value == pytest.approx(metric.value, rel=1e-9), name


def test_larger_reconstructions_are_cropped_about_their_centre(files: list[Volume]) -> None:
    slices = streaky_slices(files)
    padded = [
        replace(
            s,
            along_x=torch.nn.functional.pad(s.along_x, (3, 3, 2, 2), value=9.0),
            along_y=torch.nn.functional.pad(s.along_y, (3, 3, 2, 2), value=9.0),
        )
        for s in slices
        if s.along_y is not None
    ]
    first, second = evaluated(files, image_set(slices), image_set(padded, "padded")).sets
    assert first.overall == second.overall


def test_the_target_as_a_set_has_no_error_and_no_banding(files: list[Volume]) -> None:
    slices = [replace(s, along_x=s.target, along_y=s.target) for s in streaky_slices(files)]
    evaluation = evaluated(files, image_set(slices), probe_steps=2)
    metrics = evaluation.sets[0].overall.metrics
    assert metrics["nmse"].value == 0
    assert metrics["low_signal.contribution"].value == 0
    assert metrics["low_signal.signed_excess"].value == 0
    assert metrics["probe.balanced_accuracy"].value == 0.5
    assert metrics["probe_low_signal.balanced_accuracy"].value == 0.5
    assert math.isinf(metrics["psnr"].value)
    assert "equals its target" in metrics["psnr"].reason
    assert "identical" in evaluation.sets[0].warnings[0]
    assert draw(evaluation)


def test_one_orientation_has_the_weaker_metrics_and_the_reason_alone(
    tmp_path: Path, files: list[Volume]
) -> None:
    slices = streaky_slices(files)
    folder = open_folder(write_folder(tmp_path / "other", slices, orientations="x"), files, "x")
    both, single = evaluated(files, image_set(slices), folder, probe_steps=2).sets
    for name in (
        "low_signal.contribution",
        "background.signed_excess",
        "probe.auc",
        "probe_low_signal.auc",
        "ssim_y",
    ):
        assert math.isnan(single.overall.metrics[name].value)
        assert "no folder y" in single.overall.metrics[name].reason
        assert not math.isnan(both.overall.metrics[name].value)
    for name in (
        "ssim",
        "nmse",
        "single.low_signal.contribution",
        "single.low_signal.signed_excess",
    ):
        assert single.overall.metrics[name] == both.overall.metrics[name]
    text = markdown(Evaluation(sets=(both, single)))
    assert "weaker: B, x alone" in text
    assert "- x: `nmse_y`" in text
    assert "weaker: B" not in markdown(Evaluation(sets=(both,)))
    assert draw(Evaluation(sets=(single,)))


def test_over_corrected_images_are_shown_with_their_sign(files: list[Volume]) -> None:
    slices = streaky_slices(files)
    swapped = [
        replace(s, along_x=s.along_y, along_y=s.along_x) for s in slices if s.along_y is not None
    ]
    right, wrong = evaluated(files, image_set(slices), image_set(swapped, "swapped")).sets
    name = "low_signal.signed_excess"
    value = right.overall.metrics[name].value
    assert value > 1
    assert wrong.overall.metrics[name].value == pytest.approx(-value)
    row = next(r for r in markdown(Evaluation(sets=(wrong,))).splitlines() if "| swapped" in r)
    assert f" {-value:.3f} [" in row
    assert " -0.00" not in row


def test_intervals_contain_their_values(files: list[Volume]) -> None:
    metrics = evaluated(files, image_set(streaky_slices(files)), probe_steps=2).sets[0].overall
    widths = []
    for name, metric in metrics.metrics.items():
        if not math.isnan(metric.low):
            assert metric.low <= metric.value + 1e-12, name
            assert metric.value <= metric.high + 1e-12, name
            widths.append(metric.high - metric.low)
    assert len(widths) > 20
    assert max(widths) > 0


def test_groups_have_the_metrics_of_their_volumes_alone(files: list[Volume]) -> None:
    slices = streaky_slices(files)
    result = evaluated(files, image_set(slices), probe_steps=2).sets[0]
    assert {k: list(v) for k, v in result.groups.items()} == {
        "acquisition": ["CORPDFS_FBK", "CORPD_FBK"],
        "scanner": ["Aera", "Avanto"],
        "group": ["Aera_CORPDFS_FBK", "Aera_CORPD_FBK", "Avanto_CORPDFS_FBK"],
    }
    part = [file for file in files if file.acquisition == "CORPDFS_FBK"]
    names = {file.name for file in part}
    alone = evaluated(part, image_set([s for s in slices if s.name in names])).sets[0]
    group = result.groups["acquisition"]["CORPDFS_FBK"]
    assert (group.volumes, group.slices) == (2, 6)
    for name, metric in alone.overall.metrics.items():
        if not name.startswith("probe"):
            assert group.metrics[name] == metric
    of_volumes = [v.metrics["probe.auc"] for v in result.volumes if v.reference.name in names]
    assert group.metrics["probe.auc"].value == pytest.approx(np.mean(of_volumes))
    single = result.groups["acquisition"]["CORPD_FBK"].metrics["probe.auc"]
    assert math.isnan(single.low)
    assert "fewer than two volumes" in single.reason


def test_images_in_another_unit_are_reported_and_not_rescaled(files: list[Volume]) -> None:
    slices = streaky_slices(files)
    tenfold = [
        replace(s, along_x=10 * s.along_x, along_y=10 * s.along_y)
        for s in slices
        if s.along_y is not None
    ]
    good, bad = evaluated(files, image_set(slices), image_set(tenfold, "tenfold")).sets
    assert good.warnings == ()
    assert good.scale_factor == pytest.approx(1, abs=0.02)
    assert bad.scale_factor == pytest.approx(good.scale_factor / 10, rel=1e-6)
    assert "another unit" in bad.warnings[0]
    assert bad.overall.metrics["nmse"].value > 50
    assert "**Warning**, tenfold" in markdown(Evaluation(sets=(good, bad)))


def test_images_along_y_that_were_not_transposed_back_are_noticed(files: list[Volume]) -> None:
    slices = streaky_slices(files)
    turned = [replace(s, along_y=s.along_y.T.contiguous()) for s in slices if s.along_y is not None]
    assert "look transposed" in " ".join(evaluated(files, image_set(turned)).sets[0].warnings)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", r"y/v1\.h5: is missing"),
        ("slices", r"x/v1\.h5: reconstruction is \(2, 60, 60\).*\(3, 60, 60\)"),
        ("shape", r"x/v1\.h5: \(3, 60, 58\).*y/v1\.h5: \(3, 60, 60\): shapes differ"),
        ("key", r"x/v1\.h5: no dataset 'reconstruction'; the file holds: 'image'"),
        ("complex", r"x/v1\.h5: reconstruction is complex64 \(3, 60, 60\)"),
        ("truncated", r"x/v1\.h5: "),
        ("nan", r"y/v1\.h5: reconstruction of slice 2 has NaN"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, files: list[Volume], damage: str, says: str
) -> None:
    folder = write_folder(tmp_path / "other", streaky_slices(files))
    x, y = folder / "x" / "v1.h5", folder / "y" / "v1.h5"
    if damage == "missing":
        y.unlink()
    elif damage == "truncated":
        x.write_bytes(x.read_bytes()[:300])
    elif damage == "nan":
        with h5py.File(y, "a") as file:
            file["reconstruction"][2, 5, 5] = np.nan
    else:
        with h5py.File(x, "a") as file:
            images = file["reconstruction"][()]
            del file["reconstruction"]
            new = {
                "slices": images[:2],
                "shape": images[..., :58],
                "complex": images.astype(np.complex64),
            }
            file["image" if damage == "key" else "reconstruction"] = new.get(damage, images)
    with pytest.raises(VolumeError, match=says):
        evaluated(files, open_folder(folder, files))


def test_a_set_that_is_not_there_or_holds_nothing_is_named(
    tmp_path: Path, files: list[Volume]
) -> None:
    with pytest.raises(ConfigError, match=r"set 'a': .*nowhere does not exist"):
        open_folder(tmp_path / "nowhere", files, "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"set 'a': .*empty is neither a run's folder"):
        open_folder(tmp_path / "empty", files, "a")
    (tmp_path / "file.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        open_folder(tmp_path / "file.pt", files, "a")


def test_images_in_memory_that_are_not_usable_are_named(files: list[Volume]) -> None:
    slices = streaky_slices(files)
    bad = replace(slices[4], along_x=torch.full_like(slices[4].along_x, torch.nan))
    with pytest.raises(FloatingPointError, match=r"set 'streaky': v1\.h5 slice 1: .*along x"):
        evaluated(files, image_set([*slices[:4], bad]))
    with pytest.raises(ValueError, match=r"have different slices: 9 and 8"):
        evaluated(files, image_set(slices), image_set(slices[1:], "fewer"))
    with pytest.raises(ValueError, match="different names"):
        evaluated(files, image_set(slices), image_set(slices))
    with pytest.raises(ValueError, match=r"v0\.h5 is not among the volumes"):
        evaluated(files[1:], image_set(slices))


def test_volumes_without_target_are_all_named(tmp_path: Path) -> None:
    paths = [write_volume(tmp_path / f"t{i}.h5", with_target=False) for i in range(2)]
    with pytest.raises(VolumeError, match=r"(?s)t0\.h5: has no target image.*t1\.h5"):
        reference_volumes([read_volume(path) for path in paths])


def test_written_files_parse_and_agree(tmp_path: Path, files: list[Volume]) -> None:
    slices = streaky_slices(files)
    single = [replace(s, along_y=None, why_no_along_y="not made") for s in slices]
    evaluation = evaluated(files, image_set(slices), image_set(single, "a|b"), probe_steps=2)
    claim_output(tmp_path / "out")
    table = write_report(tmp_path / "out", evaluation, {"seed": 0})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("slices.csv", "volumes.csv", "results.json", "table.md", "figure.png")
    }
    assert (tmp_path / "out" / "table.md").read_text() == table

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "out" / "results.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    first, second = content["sets"]
    for name, metric in evaluation.sets[0].overall.metrics.items():
        written = first["overall"]["metrics"][name]
        if math.isnan(metric.value):
            assert written["value"] is None
            assert written["reason"]
        else:
            assert written["value"] == metric.value
    assert second["overall"]["metrics"]["low_signal.auc"]["reason"] == "not made (9 slices)"
    assert second["overall"]["measured"]["low_signal"]["reasons"] == {"not made": 9}

    with (tmp_path / "out" / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 9
    contributions = [float(r["low_signal.contribution"]) for r in rows if r["set"] == "streaky"]
    assert np.mean(contributions) == pytest.approx(
        first["overall"]["metrics"]["low_signal.contribution"]["value"]
    )
    powers = [float(r["low_signal.power"]) for r in rows if r["set"] == "streaky"]
    assert 100 * math.sqrt(np.mean(powers)) == pytest.approx(
        first["overall"]["metrics"]["low_signal.signed_excess"]["value"]
    )
    assert {r["low_signal.contribution"] for r in rows if r["set"] == "a|b"} == {""}
    assert {r["low_signal.reason"] for r in rows if r["set"] == "a|b"} == {"not made"}
    with (tmp_path / "out" / "volumes.csv").open() as file:
        volumes = list(csv.DictReader(file))
    ssims = [float(r["ssim"]) for r in volumes if r["set"] == "streaky"]
    assert np.mean(ssims) == pytest.approx(first["overall"]["metrics"]["ssim"]["value"])
    assert [r["acquisition"] for r in volumes[:3]] == [file.acquisition for file in files]

    row = next(line for line in table.splitlines() if line.startswith("| streaky"))
    assert f"{first['overall']['metrics']['ssim']['value']:.4f} [" in row
    assert "| a\\|b" in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)
    sections = table.split("\n## ")
    assert [s.split("\n")[0] for s in sections[1:]] == [
        *("Regions", "Probe", "By acquisition", "By scanner", "Not measurable")
    ]
    assert "CORPDFS_FBK" in sections[3]
    assert "Avanto" in sections[4]


def test_a_folder_with_something_else_is_not_written_into(
    tmp_path: Path, files: list[Volume]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    claim_output(folder)  # an empty one will do
    (folder / "results.json").write_text('{"kind": "something else"}')
    for content in ('{"kind": "something else"}', "no JSON", "[]"):
        (folder / "results.json").write_text(content)
        with pytest.raises(ConfigError, match="holds files that no evaluation wrote"):
            claim_output(folder)
    (folder / "results.json").unlink()
    write_report(folder, evaluated(files, image_set(streaky_slices(files))), {})
    claim_output(folder)  # an earlier evaluation may be replaced
    with pytest.raises(ConfigError, match="is a file"):
        claim_output(folder / "table.md")


def test_a_picture_is_drawn_of_any_number_of_sets(files: list[Volume]) -> None:
    (result,) = evaluated(files[:1], image_set(streaky_slices(files[:1]))).sets
    for count in (1, 2, 6, 11):
        named = [replace(result, name=f"a $long_{i} name of a set, {i}") for i in range(count)]
        with Image.open(io.BytesIO(draw(Evaluation(sets=tuple(named))))) as picture:
            pixels = np.asarray(picture.convert("L"))
        # names and titles end before the margins
        assert all((edge == 255).all() for edge in (pixels[:, :2], pixels[:, -2:], pixels[-2:]))


def test_a_checkpoint_has_the_metrics_of_its_validation(settings: Settings) -> None:
    run = train(settings)
    data = settings.data_path / "multicoil_val"
    filtered = settings.val_filter
    files = [read_volume(path) for path in sorted(data.glob("*.h5"))]
    files = filtered.apply(files, settings.seed)
    result = evaluated(files, open_folder(run, files)).sets[0]

    path = Path(result.origin)
    checkpoint = load_checkpoint(path)
    predictor = build_predictor(settings, CPU, checkpoint, path)
    dataset = SliceDataset(
        files, settings.mask_sampler(), seed=0, offsets_from_data=settings.offsets_from_data
    )
    validator = Validator(dataset, display=[], device=CPU, workers=0, l1_weight=0.01, team=Team())
    validation = validator.run(predictor)
    assert validation is not None
    for volume in result.volumes:
        expected = validation.volumes[volume.reference.name]
        for name in ("ssim", "nmse", "psnr", "mse"):
            assert volume.metrics[name] == getattr(expected, name)
    for name in ("ssim", "nmse", "psnr"):
        mean = result.overall.metrics[name].value
        assert mean == pytest.approx(validation.metrics[name], rel=1e-12)
        assert mean == pytest.approx(checkpoint.history[-1][f"val_{name}"], rel=1e-12)
        for group, summary in result.groups["group"].items():
            expected_of_group = validation.metrics[f"{name}/{group}"]
            assert summary.metrics[name].value == pytest.approx(expected_of_group, rel=1e-12)
    for key, name in (("banding", "contribution"), ("banding_across", "across")):
        assert result.overall.metrics[f"low_signal.{name}"].value == pytest.approx(
            validation.metrics[key], rel=1e-6, nan_ok=True
        )


def test_files_undersampled_by_the_scanner_have_one_orientation(
    settings: Settings, tmp_path: Path
) -> None:
    run = train(replace(settings, epochs=1))
    mask = np.arange(28) % 2 == 0
    mask[10:18] = True
    file = read_volume(write_volume(tmp_path / "accelerated.h5", mask=mask))
    (result,) = evaluated([file], open_folder(run, [file])).sets
    reason = result.overall.metrics["low_signal.contribution"].reason
    assert "undersampled by the scanner" in reason
    assert not math.isnan(result.overall.metrics["ssim"].value)


def words_for(tmp_path: Path, sets: str) -> list[str]:
    return [
        f"sets={sets}",
        f"volumes={tmp_path / 'volumes'}",
        f"output={tmp_path / 'out put'}",
        f"logs={tmp_path / 'logs'}",
        *("device=cpu", "probe_steps=2"),
    ]


def test_words_choose_volumes_and_slices(tmp_path: Path, files: list[Volume]) -> None:
    write_folder(tmp_path / "other", streaky_slices(files))
    words = words_for(tmp_path, f"{{a: {tmp_path / 'other'}}}")
    more = ("slices=[1,null]", "filter.acquisitions=[CORPDFS_FBK]", "probe=false")
    text = evaluate_files(from_words(EvaluateSettings(), [*words, *more]))
    assert text.startswith("# Evaluation on 2 volumes, 4 slices")
    assert "`probe`, `probe_low_signal`: turned off" in text
    for wrong, says in (
        ("slices=[7,9]", "none of 3 volumes has any of the slices"),
        ("filter.magnet=3", "filters leave"),
    ):
        with pytest.raises(ConfigError, match=says):
            evaluate_files(from_words(EvaluateSettings(), [*words, wrong]))
    with pytest.raises(ConfigError, match="name one set or more"):
        evaluate_files(from_words(EvaluateSettings(), words[1:]))
    with pytest.raises(ConfigError, match="probe_steps"):
        from_words(EvaluateSettings(), ["probe_steps=0"])


def test_every_setting_of_the_evaluation_is_read() -> None:
    sources = [Path(f.__code__.co_filename).read_text() for f in (evaluate_files, choose_volumes)]
    source = "\n".join(sources)
    for field in fields(EvaluateSettings):
        assert f"settings.{field.name}" in source, field.name


def test_the_script_runs_under_ipython(settings: Settings, tmp_path: Path) -> None:
    run = train(replace(settings, epochs=1))
    volumes = tmp_path / "volumes"
    files = [
        read_volume(write_volume(volumes / f"v{i}.h5", slices=2, size=(64, 64), seed=i))
        for i in range(2)
    ]
    write_folder(tmp_path / "other", streaky_slices(files))
    sets = f"{{my run: {run}, other: {tmp_path / 'other'}}}"
    command = [sys.executable, "-m", "IPython", str(SCRIPT), *words_for(tmp_path, sets)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "| my run |" in result.stdout
    assert str(tmp_path / "out put" / "figure.png") in result.stdout
    content = json.loads((tmp_path / "out put" / "results.json").read_text())
    assert [item["name"] for item in content["sets"]] == ["my run", "other"]
    assert content["settings"]["probe_steps"] == 2

    words = words_for(tmp_path, f"{{a: {tmp_path / 'gone'}}}")
    wrong = [sys.executable, str(SCRIPT), *words]
    failed = subprocess.run(
        wrong, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert failed.returncode == 2
    assert "gone does not exist" in failed.stderr
    assert "Traceback" not in failed.stderr
