"""The sensitivity net: coil sensitivity maps from the fully sampled centre of k-space."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from banding_removal.data.operators import COIL_AXIS
from banding_removal.model.unet import ComplexUNet, run_unet

# Pixels that go through the sensitivity net at once on a CPU: as many as fit into its caches.
CPU_PIXELS_AT_ONCE = 2**19


def center_columns(acs_lines: Tensor, width: int) -> Tensor:
    """Mask of the fully sampled centre of each sample, (B,) integers -> bool (B, 1, 1, W)."""
    column = torch.arange(width, device=acs_lines.device)
    first = ((width - acs_lines + 1) // 2)[:, None]
    inside = (column >= first) & (column < first + acs_lines[:, None])
    return inside[:, None, None, :]


class SensitivityNet(nn.Module):
    """Sensitivity maps from the centre of k-space: S = U(F^-1 C k) / RSS over coils.

    C keeps the `acs_lines` centre columns; all coils share the U-Net U. Sriram et al. (2020),
    section 3.2.

    Attributes:
        unet: U.
    """

    unet: ComplexUNet

    def forward(self, coil_images: Tensor, recompute: bool = False) -> tuple[Tensor, Tensor]:
        """Maps from coil images of the centre, complex (B, coil, H, W).

        Args:
            coil_images: F^-1 C k.
            recompute: store nothing of the U-Net; the backward pass runs it again.

        Returns:
            The maps, and where they are not zero: bool (B, H, W), false where every coil is zero.
        """
        images = coil_images.flatten(0, 1)
        maps = [
            run_unet(self.unet, part, recompute=recompute)
            for part in images.split(self._images_at_once(images, recompute))
        ]
        result: tuple[Tensor, Tensor] = _DivideByRSS.apply(torch.cat(maps).view_as(coil_images))
        return result

    def _images_at_once(self, images: Tensor, recompute: bool) -> int:
        if images.device.type == "cpu":
            return max(1, CPU_PIXELS_AT_ONCE // images[0].numel())
        # While they are recomputed, two images take as much memory as the U-Net of one cascade.
        return 2 if recompute else len(images)


class _DivideByRSS(torch.autograd.Function):
    """Maps divided by their RSS over coils, complex (B, coil, H, W); zeros stay zero.

    Like `maps / rss(maps)`, but in fewer passes, and storing only the result and 1 / RSS.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.view_as_real(maps).square().sum((COIL_AXIS - 1, -1)).sqrt_()
        # Dividing by 1 where every coil is zero keeps value and gradient finite.
        scale = torch.where(norm > 0, norm, 1.0).reciprocal_()[:, None]
        maps = maps * scale
        ctx.save_for_backward(maps, scale)
        support = norm > 0
        ctx.mark_non_differentiable(support)
        return maps, support

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _support: None) -> Tensor:
        """(g - S Re(sum over coils of conj(S) g)) / RSS, with g the gradient by S."""
        maps, scale = ctx.saved_tensors
        along = (torch.view_as_real(maps) * torch.view_as_real(gradient)).sum((COIL_AXIS - 1, -1))
        return (gradient - maps * along[:, None]) * scale
