"""Comparison of this project with the golden numbers, one figure for each quantity.

    python -m tests.support.golden_parity

Errors are relative in the 2-norm, |ours - golden| / |golden|, against the golden float64 value
where there is one; masks and orientations must agree exactly. In float32 the published code is
itself up to 6e-5 away from its own float64 numbers (the sensitivity net divides by the RSS, which
amplifies rounding), so there 1.5 times its distance is allowed where that is more than 5e-5.
"""

import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from banding_removal.data.dataset import Example, SliceDataset
from banding_removal.data.index import read_volume
from banding_removal.data.masks import MaskSampler, seeded_by_name
from banding_removal.data.operators import (
    center_crop,
    crop_to_smaller,
    expand,
    reduce,
    rss,
    to_image,
    to_kspace,
)
from banding_removal.losses.orientation import OrientationObjective
from banding_removal.losses.reconstruction import reconstruction_loss
from banding_removal.metrics.image_quality import VolumeQuality
from banding_removal.model.classifiers import ARCHITECTURES, Architecture, Ensemble, build_adversary
from banding_removal.model.predictor import Predictor
from banding_removal.training.schedule import learning_rate
from tests.support.fastmri_files import write_volume

FOLDER = Path(__file__).parents[1] / "golden"
PUBLISHED = [name for name in ARCHITECTURES if name != "patch"]  # the grid is ours
FLOAT64_TOLERANCE = 1e-9
FLOAT32_TOLERANCE = 5e-5
PREDICTORS: dict[str, dict[str, Any]] = {
    "predictor_odd_p2": {"cascades": 2, "chans": 4, "sens_chans": 4, "pools": 2},
    "predictor_tiny_p4": {"cascades": 2, "chans": 8, "sens_chans": 8, "pools": 4},
}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One compared quantity."""

    file: str
    quantity: str
    error: float
    tolerance: float


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def complex_tensor(array: np.ndarray, dtype: str) -> Tensor:
    """Trailing (real, imaginary) to complex."""
    return torch.view_as_complex(torch.tensor(array.astype(dtype)))


def relative_error(ours: Any, golden: Any) -> float:
    """|ours - golden| / |golden| in the 2-norm."""
    if isinstance(ours, Tensor):
        ours = ours.detach()
        ours = (
            torch.view_as_real(ours.resolve_conj()).numpy() if ours.is_complex() else ours.numpy()
        )
    ours = np.asarray(ours, dtype=np.float64).ravel()
    golden = np.asarray(golden, dtype=np.float64).ravel()
    distance = float(np.linalg.norm(ours - golden))
    return distance / float(np.linalg.norm(golden)) if distance else 0.0


def tolerance(dtype: str) -> float:
    """Largest error allowed in a precision."""
    return FLOAT64_TOLERANCE if dtype == "float64" else FLOAT32_TOLERANCE


def golden_weight(name: str, shape: list[int], position: int) -> Tensor:
    """A weight by the published rule: a hash of element and position, scaled by the fan-in."""
    count = int(np.prod(shape))
    k = np.arange(count, dtype=np.float64)
    hashed = np.abs(np.sin(12.9898 * (k + 1) + 78.233 * (position + 1))) * 43758.5453
    value = 2 * (hashed - np.floor(hashed)) - 1
    if len(shape) >= 2:
        value = np.sqrt(3 / np.prod(shape[1:])) * value
    elif name.endswith(("weight", "lambda_")):
        value = 1 + 0.2 * value
    else:
        value = 0.1 * value
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


def published_name(name: str) -> str:
    """Name of a predictor's parameter in the published code."""
    part, _, rest = name.partition(".unet.unet.")
    if part == "sensitivity":
        head = "model_sens.2.model.1.model.model.0."
    else:
        cascade = name.split(".")[1]
        if name.endswith("dc_weight"):
            return f"model.{cascade}.lambda_"
        head = f"model.{cascade}.net.1.model.model.0."
    stage, *keys, kind = rest.split(".")
    layer = {"first": "layer1.0", "second": "layer2.0"}
    if stage in ("down", "up"):
        return f"{head}{stage}_sample_layers.{keys[0]}.{layer[keys[1]]}.{kind}"
    if stage == "bottom":
        return f"{head}conv.{layer[keys[0]]}.{kind}"
    return f"{head}conv2.{keys[0]}.{kind}"


def golden_predictor(name: str, dtype: str) -> Predictor:
    """The predictor of a golden file with its weights, in float32 or float64."""
    shapes = json.loads((FOLDER / f"{name}.json").read_text())["state_shapes"]
    position = {published: i for i, (published, _) in enumerate(sorted(shapes))}
    predictor = Predictor(**PREDICTORS[name])
    weights = {
        own: golden_weight(published_name(own), list(w.shape), position[published_name(own)])
        for own, w in predictor.state_dict().items()
    }
    predictor.load_state_dict(weights)
    return predictor.to(getattr(torch, dtype))


def predictor_parity(name: str, dtype: str) -> Iterator[Parity]:
    """Sensitivity maps, first cascade, output, loss and all gradients."""
    golden, facts = load(name), json.loads((FOLDER / f"{name}.json").read_text())
    predictor = golden_predictor(name, dtype)
    kspace = complex_tensor(golden["masked_kspace"], dtype)[None].requires_grad_()
    mask = torch.tensor(golden["mask"][..., 0] > 0)[None]
    acs_lines = torch.tensor([int(golden["num_lf"])])

    sens_maps = predictor.sensitivity_maps(kspace, mask, acs_lines)
    # The first state of the cascade as published: nothing to correct, but a first refinement.
    refinement = predictor.cascades.get_submodule("0.unet")(reduce(kspace, sens_maps).squeeze(1))
    first = kspace - expand(refinement[:, None], sens_maps)
    output = predictor(kspace, mask, acs_lines)
    target = torch.tensor(golden["target"].astype(dtype))[None, None]
    data_range = torch.tensor(golden["data_range"].astype(dtype))
    loss, similarity = reconstruction_loss(output, target, data_range)
    loss.backward()
    gradients = {
        published_name(own): weight.grad
        for own, weight in predictor.named_parameters()
        if weight.grad is not None
    }
    ours = {
        "sens_maps": sens_maps,
        "cascade0": first,
        "output": output,
        "loss": loss,
        "ssim": similarity,
        "dloss_dkspace": kspace.grad,
        "grad_norms": [float(gradients[key].norm()) for key in facts["param_names"]],
    }
    for quantity, value in ours.items():
        exact = golden[f"{quantity}_float64"]
        published = relative_error(golden[f"{quantity}_{dtype}"], exact)
        yield Parity(
            file=name,
            quantity=f"{quantity}, {dtype}",
            error=relative_error(value, exact),
            tolerance=max(tolerance(dtype), 1.5 * published),
        )
    if dtype == "float64":
        # A bias before an instance norm has no effect; its gradient is rounding noise.
        stored = {
            key.removeprefix("grad::"): value
            for key, value in golden.items()
            if key.startswith("grad::") and not key.endswith("layer1.0.bias")
        }
        worst = max(relative_error(gradients[key], value) for key, value in stored.items())
        yield _row(name, "gradient of the worst weight", dtype, worst)


def ops_parity() -> Iterator[Parity]:
    """Fourier transforms, RSS, coil operators, crops."""
    golden = load("ops")
    for dtype in ("float32", "float64"):
        worst = 0.0
        for j in range(5):
            x = complex_tensor(golden[f"x{j}"], dtype)
            worst = max(
                worst,
                relative_error(to_kspace(x), golden[f"fft{j}_{dtype}"]),
                relative_error(to_image(x), golden[f"ifft{j}_{dtype}"]),
            )
        yield _row("ops", "centred FFT and inverse", dtype, worst)
    coil_images = complex_tensor(golden["rss_in"], "float32")
    error = relative_error(rss(coil_images)[:, 0], golden["rss_complex_dim1"])
    yield _row("ops", "RSS", "float32", error)
    sens, image, coils = (
        complex_tensor(golden[key], "float32")[:, :, 0] for key in ("sens", "img", "coilimg")
    )
    expanded = to_image(expand(image, sens))  # the golden expansion stays in the image domain
    yield _row("ops", "expand", "float32", relative_error(expanded, golden["sens_expand"]))
    reduced = reduce(to_kspace(coils), sens)
    yield _row("ops", "reduce", "float32", relative_error(reduced, golden["sens_reduce"]))
    crop_in = torch.tensor(golden["crop_in"])
    worst = 0.0
    for j in range(6):
        h, w = golden[f"crop{j}_shape"].tolist()
        worst = max(worst, relative_error(center_crop(crop_in, (h, w)), golden[f"crop{j}"]))
    pair = crop_to_smaller(crop_in, torch.tensor(golden["cts_y"]))
    for ours, key in zip(pair, ("cts_x_out", "cts_y_out"), strict=True):
        worst = max(worst, relative_error(ours, golden[key]))
    yield Parity(file="ops", quantity="centre crops", error=worst, tolerance=0)


def metrics_parity() -> Iterator[Parity]:
    """Loss and gradient; figures of whole volumes."""
    golden = load("ssim_metrics")
    for dtype in ("float32", "float64"):
        value = gradient = 0.0
        for j in range(3):
            x = torch.tensor(golden[f"X{j}"].astype(dtype), requires_grad=True)
            y = torch.tensor(golden[f"Y{j}"].astype(dtype))
            loss, _ = reconstruction_loss(x, y, torch.tensor(golden[f"range{j}"].astype(dtype)))
            loss.backward()
            value = max(value, relative_error(loss, golden[f"loss{j}_{dtype}"]))
            gradient = max(gradient, relative_error(x.grad, golden[f"dloss_dX{j}_{dtype}"]))
        yield _row("ssim_metrics", "loss", dtype, value)
        yield _row("ssim_metrics", "gradient of the loss", dtype, gradient)
    worst = 0.0
    for j in range(2):
        targets, predictions = torch.tensor(golden[f"gt{j}"]), torch.tensor(golden[f"pred{j}"])
        data_range = targets.max()
        volume = VolumeQuality(data_range=float(data_range))
        for prediction, target in zip(predictions, targets, strict=True):
            volume.add(prediction[None, None], target[None, None], data_range[None])
        for key, ours in vars(volume.result()).items():
            worst = max(worst, relative_error(ours, golden[f"{key}{j}"]))
    # The published sums are float32 sums, ours float64.
    yield _row("ssim_metrics", "volume MSE, NMSE, PSNR, SSIM", "float32", worst)


def masks_parity() -> Iterator[Parity]:
    """Every golden mask, column by column; the error is the number of masks that differ."""
    golden = load("masks")
    entries = json.loads((FOLDER / "masks.json").read_text())
    different: dict[str, int] = {}
    for entry in entries:
        kind, seed, offset = entry["kind"], entry["seed"], entry["offset"]
        if isinstance(seed, str):
            rng = seeded_by_name(seed.removeprefix("fname:"))
        else:
            rng = np.random.RandomState(seed)
        if offset is None and kind != "random":
            # Published: drawn by Python's generator.
            draws = random.Random(entry["python_random_seed"])
            offset = draws.randrange(entry["accelerations"][0])
        sampler = MaskSampler(
            kind=kind, accelerations=tuple(entry["accelerations"]), acs=tuple(entry["num_low"])
        )
        padding = entry["padding"] and tuple(entry["padding"])
        mask = sampler.draw(entry["n"], rng, offset=offset, acquired=padding)
        same = mask.acs_lines == entry["num_low_returned"] and np.array_equal(
            mask.columns, golden[entry["key"]].astype(bool)
        )
        different[kind] = different.get(kind, 0) + (not same)
    counts = {kind: sum(e["kind"] == kind for e in entries) for kind in different}
    for kind, wrong in different.items():
        quantity = f"{counts[kind]} {kind} masks (number that differ)"
        yield Parity(file="masks", quantity=quantity, error=wrong, tolerance=0)


def orientation_parity() -> Iterator[Parity]:
    """Whole examples read from a file, upright and transposed."""
    golden = load("orientation")
    for entry in json.loads((FOLDER / "orientation.json").read_text()):
        with tempfile.TemporaryDirectory() as folder:
            example = _golden_example(Path(folder), golden, entry)
        key = entry["key"]
        worst = max(
            relative_error(example.masked_kspace, golden[f"{key}_input"]),
            relative_error(example.mask.float(), golden[f"{key}_mask"]),
            relative_error(example.target, golden[f"{key}_target_im"]),
        )
        how = "transposed" if entry["rotated"] else "upright"
        where = "data" if entry["calculate_offsets_directly"] else "header"
        quantity = f"{entry['src']}, {how}, columns by the {where}"
        yield Parity(file="orientation", quantity=quantity, error=worst, tolerance=0)


def _golden_example(folder: Path, golden: dict[str, np.ndarray], entry: dict[str, Any]) -> Example:
    acceleration, by_data = entry["accel"], entry["calculate_offsets_directly"]
    # Without offsets from the data, ours are drawn by the file's name; published: by Python's
    # generator. Any name that draws the same offset will do.
    wanted = random.Random(entry["python_random_seed"]).randrange(acceleration)
    name = next(
        name
        for name in (f"file{i}.h5" for i in range(1000))
        if by_data or _drawn_offset(name, acceleration) == wanted
    )
    left, right = entry["attrs_padding"]
    path = write_volume(
        folder / name,
        kspace=golden[entry["src"]][None],
        size=golden["kspace"].shape[1:],
        acquired=(left, right),
        target_size=golden["target"].shape,
    )
    with h5py.File(path, "r+") as file:
        file["reconstruction_rss"][0] = golden["target"]
    sampler = MaskSampler(
        kind=entry["mask_type"], accelerations=(acceleration,), acs=(entry["num_low"],)
    )
    dataset = SliceDataset(
        [read_volume(path)],
        sampler,
        seed=0,
        rotate_probability=float(entry["rotated"]),
        offsets_from_data=by_data,
    )
    example = dataset[0]
    dataset.close()
    return example


def _drawn_offset(name: str, acceleration: int) -> int:
    rng = seeded_by_name(name)
    rng.randint(0, 1)
    rng.randint(0, 1)
    return int(rng.randint(acceleration))


def lr_parity() -> Iterator[Parity]:
    """Learning rates of 301 epochs, base 1e-3, a tenth every 40 epochs."""
    golden = load("lr")
    ours = [learning_rate(int(epoch), 1e-3, drop_every=40) for epoch in golden["epochs"]]
    error = relative_error(ours, golden["every40"][:, 0])
    yield _row("lr", "every 40 epochs", "float64", error)


def parameter_parity() -> Iterator[Parity]:
    """Numbers of parameters of the two published predictors."""
    golden = json.loads((FOLDER / "param_counts.json").read_text())
    for cascades in (12, 6):
        count = sum(p.numel() for p in Predictor(cascades=cascades).parameters())
        difference = abs(count - golden[f"predictor{cascades}"]["params"])
        quantity = f"{cascades} cascades: {count} parameters (difference)"
        yield Parity(file="param_counts", quantity=quantity, error=difference, tolerance=0)


def _row(file: str, quantity: str, dtype: str, error: float) -> Parity:
    return Parity(
        file=file, quantity=f"{quantity}, {dtype}", error=error, tolerance=tolerance(dtype)
    )


def published_adversary_name(name: str) -> str:
    """Name of a single adversary's parameter in the published code; torchvision's are the same."""
    own = name.removeprefix("members.0.")
    for ours, theirs in {
        "stem.": "conv_img.",
        "head.": "fc.",
        "blocks.": "resnet.",
        "norm_in": "norm_0",
        "norm_out": "norm_1",
        "conv_in": "conv_0",
        "conv_out": "conv_1",
        "shortcut": "conv_s",
    }.items():
        own = own.replace(ours, theirs)
    return own


def golden_adversary(architecture: Architecture) -> Ensemble:
    """A single adversary with the published weights, in float64."""
    shapes = json.loads((FOLDER / "adversaries_state_shapes.json").read_text())[architecture]
    position = {name: i for i, name in enumerate(sorted(name for name, _ in shapes))}
    adversary = build_adversary(architecture)
    weights = {}
    for name, weight in adversary.state_dict().items():
        key = published_adversary_name(name)
        weights[name] = golden_weight(key, list(weight.shape), position[key])
    adversary.load_state_dict(weights)
    return adversary.double()


def adversaries_parity(architecture: Architecture) -> Iterator[Parity]:
    """Logit and input gradient, parameter count."""
    golden = load("adversaries")
    counts = json.loads((FOLDER / "param_counts.json").read_text())
    adversary = golden_adversary(architecture)
    count = sum(weight.numel() for weight in adversary.parameters())
    quantity = f"{architecture}: {count} parameters (difference)"
    difference = abs(count - counts[architecture]["params"])
    yield Parity(file="param_counts", quantity=quantity, error=difference, tolerance=0)
    logits = gradients = stored = 0.0
    for x in ("x", "x3_independent_channels"):
        image = torch.tensor(golden[x]).double().requires_grad_()
        logit = adversary(image)
        logit.sum().backward()
        assert image.grad is not None
        key = f"{x}_float64"
        logits = max(logits, relative_error(logit, golden[f"{architecture}_logit_{key}"]))
        norm = golden[f"{architecture}_gradx_norm_{key}"]
        gradients = max(gradients, relative_error(image.grad.norm(), norm))
        if f"{architecture}_gradx_{x}" in golden:
            whole = golden[f"{architecture}_gradx_{x}"]
            stored = max(stored, relative_error(image.grad, whole))
    yield _row("adversaries", f"{architecture} logit", "float64", logits)
    yield _row("adversaries", f"{architecture} norm of the input gradient", "float64", gradients)
    # Kept in float32 only.
    yield _row("adversaries", f"{architecture} input gradient", "float32", stored)


def adversarial_loss_parity() -> Iterator[Parity]:
    """Both players' terms and gradients, in float64."""
    golden = load("adv_loss")
    worst: dict[str, float] = {}
    for case in json.loads((FOLDER / "adv_loss.json").read_text()):
        if case["dtype"] == "float64":
            for quantity, error in _adversarial_errors(case, golden).items():
                worst[quantity] = max(worst.get(quantity, 0.0), error)
    for quantity, error in worst.items():
        # The image's gradient is kept in float32 only.
        dtype = "float32" if quantity == "gradient of the image" else "float64"
        yield _row("adv_loss", quantity, dtype, error)


def _adversarial_errors(case: dict[str, Any], golden: dict[str, np.ndarray]) -> dict[str, float]:
    adversary = golden_adversary(case["adversary"])
    objective = OrientationObjective(
        adversary,
        target="flipped" if case["adv_target_uncertain"] else "uncertain",
        reg_param=case["reg_param"],
    )
    image = torch.tensor(golden["prediction"]).double().requires_grad_()
    rotated = torch.tensor([float(case["rotated"])])
    term = objective.predictor_term(image, rotated)
    (case["strength"] * term).backward()
    verdict = objective.adversary_loss(image, rotated)
    verdict.loss.backward()
    assert image.grad is not None
    norms = [float(w.grad.norm()) for w in adversary.parameters() if w.grad is not None]
    return {
        "predictor's term": relative_error(term, case["pred_orien"]),
        "adversary's term": relative_error(verdict.classification, case["adv_orien"]),
        "penalty": relative_error(verdict.penalty, case["reg"]),
        "accuracy": abs(float(verdict.accuracy) - case["accu_orien"]),
        "mean logit": relative_error(verdict.bias, case["adv_bias"]),
        "sum": relative_error(case["strength"] * term + verdict.loss, case["train_loss"]),
        "norm of the image's gradient": relative_error(
            image.grad.norm(), case["grad_prediction_norm"]
        ),
        "gradient of the image": relative_error(image.grad, golden[f"{case['key']}_dpred"]),
        "norms of the adversary's gradients": relative_error(
            sorted(norms), np.sort(golden[f"{case['key']}_adv_grad_norms"])
        ),
    }


def all_parities() -> Iterator[Parity]:
    """Every comparison there is."""
    yield from masks_parity()
    yield from ops_parity()
    yield from metrics_parity()
    yield from orientation_parity()
    yield from lr_parity()
    yield from parameter_parity()
    for name in PREDICTORS:
        for dtype in ("float64", "float32"):
            yield from predictor_parity(name, dtype)
    for architecture in PUBLISHED:
        yield from adversaries_parity(architecture)
    yield from adversarial_loss_parity()


def main() -> None:
    """Print one line for each compared quantity."""
    print(f"{'file':18} {'quantity':52} {'error':>9}  allowed")
    failed = 0
    for row in all_parities():
        failed += row.error > row.tolerance
        verdict = "" if row.error <= row.tolerance else "  <- too far"
        print(f"{row.file:18} {row.quantity:52} {row.error:9.2g}  {row.tolerance:.1e}{verdict}")
    print(f"{failed} too far" if failed else "all within what is allowed")


if __name__ == "__main__":
    main()
