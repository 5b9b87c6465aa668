import subprocess
import sys

import pytest
import torch

from banding_removal.data.operators import rss, to_image
from banding_removal.model.predictor import Predictor
from banding_removal.model.sensitivity import center_columns
from banding_removal.model.unet import ComplexUNet, UNet


def small_predictor(dtype: torch.dtype = torch.float64) -> Predictor:
    torch.manual_seed(0)
    return Predictor(cascades=2, chans=4, pools=2, sens_chans=4).to(dtype)


def random_input(
    coils: int, height: int, width: int, batch: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, coils, height, width)
    kspace = torch.randn(shape, dtype=torch.complex128, generator=generator)
    mask = torch.rand(batch, 1, 1, width, generator=generator) < 0.3
    mask |= center_columns(torch.full((batch,), 6), width)
    return kspace * mask, mask, torch.full((batch,), 6)


@pytest.mark.parametrize(("coils", "height", "width"), [(1, 20, 33), (3, 37, 30), (5, 16, 48)])
def test_any_number_of_coils_and_any_size_gives_an_image_of_the_kspace_size(
    coils: int, height: int, width: int
) -> None:
    image = small_predictor()(*random_input(coils, height, width))
    assert image.shape == (1, 1, height, width)
    assert image.dtype == torch.float64
    assert (image >= 0).all()


def test_a_batch_gives_the_same_as_its_examples_one_by_one_with_their_own_centre_lines() -> None:
    kspace, mask, _ = random_input(3, 24, 20, batch=2)
    acs_lines = torch.tensor([4, 8])
    predictor = small_predictor()
    together = predictor(kspace, mask, acs_lines)
    for i in range(2):
        alone = predictor(kspace[i : i + 1], mask[i : i + 1], acs_lines[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-12)
    other = predictor(kspace[:1], mask[:1], acs_lines[1:])
    assert not torch.allclose(together[:1], other, rtol=1e-3)


def test_one_mask_serves_a_whole_batch() -> None:
    kspace, mask, acs_lines = random_input(3, 24, 20, batch=2)
    mask, acs_lines = mask[:1], acs_lines[:1]
    kspace = kspace * mask
    predictor = small_predictor()
    each = predictor(kspace, mask.expand(2, -1, -1, -1), acs_lines.expand(2))
    torch.testing.assert_close(predictor(kspace, mask, acs_lines), each)


def test_centre_columns_start_where_the_masks_place_them() -> None:
    columns = center_columns(torch.tensor([4, 3]), 9)
    assert columns.shape == (2, 1, 1, 9)
    assert columns[0, 0, 0].nonzero().flatten().tolist() == [3, 4, 5, 6]
    assert columns[1, 0, 0].nonzero().flatten().tolist() == [3, 4, 5]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_the_output_scales_with_the_data(scale: float) -> None:
    kspace, mask, acs_lines = random_input(2, 24, 20)
    predictor = small_predictor()
    once = predictor(kspace, mask, acs_lines)
    scaled = predictor(scale * kspace, mask, acs_lines)
    torch.testing.assert_close(scaled, scale * once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("empty", ["slice", "coil", "centre"])
def test_zeros_in_the_input_give_finite_output_and_gradients(empty: str) -> None:
    kspace, mask, acs_lines = random_input(3, 24, 20)
    if empty == "slice":
        kspace = torch.zeros_like(kspace)
    elif empty == "coil":
        kspace[:, 1] = 0
    else:
        kspace = kspace * ~center_columns(acs_lines, 20)
    kspace = kspace.to(torch.complex64).requires_grad_()
    predictor = small_predictor(torch.float32)
    image = predictor(kspace, mask, acs_lines)
    image.sum().backward()
    assert image.isfinite().all()
    assert kspace.grad is not None and kspace.grad.isfinite().all()
    for name, weight in predictor.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name


def test_an_empty_slice_is_reconstructed_as_empty() -> None:
    kspace, mask, acs_lines = random_input(3, 24, 20)
    assert (small_predictor()(0 * kspace, mask, acs_lines) == 0).all()


def test_a_dead_coil_acts_like_an_ever_weaker_one() -> None:
    kspace, mask, acs_lines = random_input(3, 24, 20)
    kspace = kspace.clone()
    predictor = small_predictor()
    images = []
    for strength in (1e-9, 0.0):
        weakened = kspace.clone()
        weakened[:, 1] *= strength
        images.append(predictor(weakened, mask, acs_lines))
    torch.testing.assert_close(images[1], images[0], rtol=1e-5, atol=1e-8)


def test_without_refinement_the_measured_columns_are_kept() -> None:
    kspace, mask, acs_lines = random_input(3, 24, 20)
    predictor = small_predictor()
    for module in predictor.cascades.modules():
        if isinstance(module, ComplexUNet):
            module.register_forward_hook(lambda _module, _input, output: 0 * output)
    torch.testing.assert_close(predictor(kspace, mask, acs_lines), rss(to_image(kspace)))


def test_the_complex_unet_undoes_its_padding_and_normalisation() -> None:
    net = ComplexUNet(UNet(chans=2, pools=1)).double()
    net.unet.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    image = 3 + torch.randn(2, 21, 35, dtype=torch.complex128)
    torch.testing.assert_close(net(image), image)


@pytest.mark.parametrize(("chans", "pools"), [(3, 2), (0, 2), (4, 0)])
def test_impossible_unets_are_refused(chans: int, pools: int) -> None:
    with pytest.raises(ValueError, match="even width"):
        UNet(chans, pools)


def gradients(predictor: Predictor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    predictor.zero_grad()
    predictor(*inputs).square().sum().backward()
    return [weight.grad for weight in predictor.parameters() if weight.grad is not None]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputed_networks_give_the_same_gradients_and_keep_less(dropout: float) -> None:
    torch.manual_seed(0)
    predictor = Predictor(cascades=3, chans=4, pools=2, sens_chans=4, dropout=dropout)
    kspace, mask, acs_lines = random_input(3, 48, 40, batch=2)
    inputs = (kspace.to(torch.complex64), mask, acs_lines)
    results, kept = [], []
    for predictor.recomputed in range(5):
        torch.manual_seed(1)
        results.append(gradients(predictor, *inputs))
        kept.append(kept_bytes(predictor, *inputs))
    assert all(
        torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)
    )
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)


@pytest.mark.parametrize("recomputed", [0, 4])
def test_cascades_that_learn_alone_get_the_same_gradients_and_the_rest_keeps_nothing(
    recomputed: int,
) -> None:
    torch.manual_seed(0)
    predictor = Predictor(cascades=3, chans=4, pools=2, sens_chans=4)
    kspace, mask, acs_lines = random_input(3, 48, 40, batch=2)
    inputs = (kspace.to(torch.complex64), mask, acs_lines)
    everything, kept = gradients(predictor, *inputs), kept_bytes(predictor, *inputs)
    predictor.recomputed = recomputed
    predictor.train_only(2)
    learning = [name for name, weight in predictor.named_parameters() if weight.requires_grad]
    assert {name.rsplit(".", 1)[0][:10] for name in learning} == {"cascades.1", "cascades.2"}
    predictor.zero_grad()
    last = gradients(predictor, *inputs)
    assert len(last) == len(learning)
    assert all(torch.equal(a, b) for a, b in zip(everything[-len(last) :], last, strict=True))
    assert kept_bytes(predictor, *inputs) < 0.8 * kept
    for too_many in (0, 4):
        with pytest.raises(ValueError, match="of 3 cascades cannot be trained"):
            predictor.train_only(too_many)


def kept_bytes(predictor: Predictor, *inputs: torch.Tensor) -> int:
    """Bytes of all tensors that a forward pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = predictor(*inputs)
    assert result.requires_grad
    return sum(kept.values())


PEAK_OF_INFERENCE = """
import resource, sys, torch
from banding_removal.model.predictor import Predictor
predictor = Predictor(cascades=int(sys.argv[1]), chans=16, pools=2, sens_chans=2).eval()
kspace = torch.randn(1, 2, 320, 320, dtype=torch.complex64)
mask = torch.ones(1, 1, 1, 320, dtype=torch.bool)
with torch.no_grad():
    predictor(kspace, mask, torch.tensor([16]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_inference_takes_the_same_memory_for_any_number_of_cascades() -> None:
    few, many = (
        int(subprocess.check_output([sys.executable, "-c", PEAK_OF_INFERENCE, cascades], text=True))
        for cascades in ("2", "12")
    )
    kept_by_a_cascade_in_training = 6 * 16 * 320 * 320 * 4
    assert many - few < kept_by_a_cascade_in_training  # of ten more


@pytest.mark.parametrize(("chans", "pools"), [(4, 1), (4, 2), (6, 3), (8, 4)])
def test_a_unet_can_start_as_the_identity_and_learns_from_there(chans: int, pools: int) -> None:
    torch.manual_seed(0)
    inner = UNet(chans, pools)
    inner.start_as_identity()
    unet = ComplexUNet(inner).to(torch.float64)
    scale = torch.tensor([1.0, 1e-6])[:, None, None]
    image = torch.randn(2, 37, 50, dtype=torch.complex128) * scale
    found = unet(image)
    # The norms' epsilon takes a little.
    assert ((found - image).abs().amax((1, 2)) < 5e-4 * image.abs().amax((1, 2))).all()
    found.abs().square().mean().backward()
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    (unet(image) - image.conj()).abs().square().mean().backward()
    for weight in unet.parameters():
        assert weight.grad is not None
        assert weight.ndim == 1 or weight.grad.abs().max() > 0


def test_two_channels_cannot_hold_a_sign() -> None:
    with pytest.raises(ValueError, match="2 channels cannot start"):
        UNet(2, 1).start_as_identity()
    Predictor(cascades=1, chans=2, pools=1, sens_chans=2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_before_any_training_maps_are_the_centre_over_its_rss(seed: int) -> None:
    torch.manual_seed(seed)
    predictor = Predictor(cascades=1, chans=4, pools=2, sens_chans=4).to(torch.float64)
    kspace, mask, acs_lines = random_input(4, 30, 40)
    coil_images = to_image(kspace * center_columns(acs_lines, 40))
    maps = predictor.sensitivity_maps(kspace, mask, acs_lines)
    expected = coil_images / rss(coil_images)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-3)
    at_random = Predictor(cascades=1, chans=4, pools=2, sens_chans=4, sens_identity=False).double()
    found = at_random.sensitivity_maps(kspace, mask, acs_lines)
    assert (found - expected).abs().mean() > 0.1


def test_under_autocast_the_image_is_near_and_float32() -> None:
    predictor = small_predictor(torch.float32)
    kspace, mask, acs_lines = random_input(3, 24, 20)
    kspace = kspace.to(torch.complex64)
    exact = predictor(kspace, mask, acs_lines)
    with torch.autocast("cpu", torch.bfloat16):
        lower = predictor(kspace, mask, acs_lines)
    assert lower.dtype == torch.float32
    difference = (lower - exact).norm() / exact.norm()
    assert 1e-6 < difference < 0.02
