"""The predictor: a cascade of complex U-Nets in k-space with learned sensitivity maps."""

import torch
from torch import Tensor, nn

from data.operators import expand, reduce, rss, to_image
from model.unet import ComplexUNet


def center_columns(acs_lines: Tensor, width: int) -> Tensor:
    """Mask of the fully sampled centre, (B,) integers -> bool (B, 1, 1, W), each sample its own."""
    column = torch.arange(width, device=acs_lines.device)
    first = ((width - acs_lines + 1) // 2)[:, None]
    inside = (column >= first) & (column < first + acs_lines[:, None])
    return inside[:, None, None, :]


class SensitivityNet(nn.Module):
    """Sensitivity maps from the centre of k-space: S = U(F^-1 C k) / RSS over coils.

    C keeps the `acs_lines` centre columns; the U-Net U is shared by all coils. Sriram et al.
    (2020), section 3.2.
    """

    def __init__(self, chans: int, pools: int) -> None:
        super().__init__()
        self.unet = ComplexUNet(chans, pools)

    def forward(self, masked_kspace: Tensor, acs_lines: Tensor) -> Tensor:
        """(B, coil, H, W) complex k-space and (B,) line counts -> maps like the k-space."""
        center = masked_kspace * center_columns(acs_lines, masked_kspace.shape[-1])
        coil_images = to_image(center)
        maps = self.unet(coil_images.flatten(0, 1)).view_as(coil_images)
        norm = rss(maps)
        # Where every coil is zero, x / 1 keeps value and gradient finite.
        return maps / torch.where(norm > 0, norm, 1.0)


class Cascade(nn.Module):
    """One refinement step, x - lambda M (x - k) - E U(E^H x); lambda learned, 1 at the start."""

    def __init__(self, chans: int, pools: int, dropout: float) -> None:
        super().__init__()
        self.unet = ComplexUNet(chans, pools, dropout)
        self.dc_weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, k: Tensor, mask: Tensor, sens_maps: Tensor) -> Tensor:
        """State x and measured k, (B, coil, H, W) complex; mask (B, 1, 1, W) bool -> the next x."""
        data_consistency = self.dc_weight * mask * (x - k)
        refined = self.unet(reduce(x, sens_maps).squeeze(1)).unsqueeze(1)  # (B, 1, H, W)
        return x - data_consistency - expand(refined, sens_maps)


class Predictor(nn.Module):
    """Masked multi-coil k-space -> RSS image: sensitivity net, T cascades, RSS over coils.

    Defazio et al., "MRI Banding Removal via Adversarial Training" (2020), section 4, after the
    end-to-end variational network. The paper has 12 cascades of 18 channels (12,931,532
    parameters), its development variant 6 (6,570,656).

    Args:
        cascades: number T of cascades.
        chans: width of the cascades' U-Nets; even.
        pools: poolings of all U-Nets.
        sens_chans: width of the sensitivity U-Net; even.
        dropout: of the cascades' U-Nets.
    """

    def __init__(
        self,
        *,
        cascades: int = 12,
        chans: int = 18,
        pools: int = 4,
        sens_chans: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sensitivity = SensitivityNet(sens_chans, pools)
        self.cascades = nn.ModuleList(Cascade(chans, pools, dropout) for _ in range(cascades))

    def forward(self, masked_kspace: Tensor, mask: Tensor, acs_lines: Tensor) -> Tensor:
        """Reconstruct a batch.

        Args:
            masked_kspace: complex (B, coil, H, W), zero where not measured.
            mask: bool (B, 1, 1, W), the measured phase-encode columns.
            acs_lines: integer (B,), fully sampled centre columns of each sample.

        Returns:
            The image, real (B, 1, H, W), in the data's unit.
        """
        sens_maps = self.sensitivity(masked_kspace, acs_lines)
        x = masked_kspace
        for cascade in self.cascades:
            x = cascade(x, masked_kspace, mask, sens_maps)
        return rss(to_image(x))
