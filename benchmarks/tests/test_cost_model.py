import pytest
import torch

from banding_removal.model.unet import ComplexUNet, UNet
from benchmarks.cost_model import Problem, kept_bytes


@pytest.mark.parametrize(("chans", "bfloat16"), [(18, False), (8, True)])
def test_the_predicted_memory_of_a_unet_is_near_and_not_too_low(chans: int, bfloat16: bool) -> None:
    problem = Problem(coils=1, height=160, width=120, cascades=1, chans=chans)
    unet = ComplexUNet(UNet(chans, problem.pools))
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    image = torch.randn(1, problem.height, problem.width, dtype=torch.complex64)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        result = unet(image)
    assert result.requires_grad
    for weight in unet.parameters():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    predicted = kept_bytes(problem, chans, 2 if bfloat16 else 4)
    assert 0.95 < predicted / sum(kept.values()) < 1.3
