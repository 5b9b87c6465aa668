"""The predictor: a cascade of complex U-Nets in k-space with learned sensitivity maps.

The states x_t of the paper's cascade, k-space of all coils, are not kept. With d_t = M (x_t - k)

    x_{t+1} = x_t - lambda_t d_t - F S U_t(r_t),    r_t = sum over coils of conj(S) F^-1 x_t,

so that x_t = y_t - F S v_t, where v_t is the sum of the refinements U so far, one image, and y_t
has nothing outside of the measured columns:

    v_0 = 0,  v_{t+1} = v_t + U_t(r_t)
    y_0 = k,  y_{t+1} = y_t - lambda_t (y_t - k - A v_t)        A = M F S
    r_t = A^H y_t - v_t                                         as sum over coils of |S|^2 = 1

The result, RSS of F^-1 x_T, is that of F^-1 y_T - S v_T.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from banding_removal.data.operators import COIL_AXIS
from banding_removal.model.columns import Columns, expand, reduce, rss_of_sum, to_coil_images
from banding_removal.model.unet import ComplexUNet

# Coil images at once through the sensitivity net: on a CPU what fits into its caches.
CPU_PIXELS_AT_ONCE = 2**19


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

    def __init__(self, chans: int, pools: int, *, identity: bool = True) -> None:
        super().__init__()
        self.unet = ComplexUNet(chans, pools)
        if identity and chans >= 4:
            # Maps begin as the centre's coil images over their RSS. From random weights, coils'
            # phases are mixed up, and for some seeds training does not find out of that.
            self.unet.unet.start_as_identity()

    def forward(self, coil_images: Tensor, recompute: bool = False) -> tuple[Tensor, Tensor]:
        """Maps from coil images of the centre, complex (B, coil, H, W).

        Args:
            coil_images: F^-1 C k.
            recompute: keep no value of the network for the backward pass.

        Returns:
            The maps, and where there are any: bool (B, H, W), false where every coil is zero.
        """
        images = coil_images.flatten(0, 1)
        parts = images.split(self._at_once(images, recompute))
        if recompute:
            maps = [checkpoint(self.unet, part, use_reentrant=False) for part in parts]
        else:
            maps = [self.unet(part) for part in parts]
        result: tuple[Tensor, Tensor] = _Normalise.apply(torch.cat(maps).view_as(coil_images))
        return result

    def _at_once(self, images: Tensor, recompute: bool) -> int:
        if images.device.type == "cpu":
            return max(1, CPU_PIXELS_AT_ONCE // images[0].numel())
        # As much as one cascade's U-Net keeps while it is made again.
        return 2 if recompute else len(images)


class _Normalise(torch.autograd.Function):
    """Divided by the RSS over coils, zeros staying zeros; (B, coil, H, W) complex."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.view_as_real(maps).square().sum((COIL_AXIS - 1, -1)).sqrt_()
        # Where every coil is zero, x / 1 keeps value and gradient finite.
        scale = torch.where(norm > 0, norm, 1.0).reciprocal_()[:, None]
        maps = maps * scale
        ctx.save_for_backward(maps, scale)
        support = norm > 0
        ctx.mark_non_differentiable(support)
        return maps, support

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _support: None) -> Tensor:
        """(g - S Re(sum over coils of conj(S) g)) / RSS."""
        maps, scale = ctx.saved_tensors
        along = (torch.view_as_real(maps) * torch.view_as_real(gradient)).sum((COIL_AXIS - 1, -1))
        return (gradient - maps * along[:, None]) * scale


class Cascade(nn.Module):
    """What a refinement step learns: its U-Net and the weight lambda, 1 at the start."""

    def __init__(self, chans: int, pools: int, dropout: float) -> None:
        super().__init__()
        self.unet = ComplexUNet(chans, pools, dropout)
        self.dc_weight = nn.Parameter(torch.ones(1))


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
        sens_identity: it begins as the identity, where it has four channels; else at random.
        dropout: of the cascades' U-Nets.

    Attributes:
        recomputed: of so many networks, the sensitivity net and the first cascades' U-Nets, nothing
            is kept for the backward pass: they run a second time in it, with the same result.
    """

    def __init__(
        self,
        *,
        cascades: int = 12,
        chans: int = 18,
        pools: int = 4,
        sens_chans: int = 8,
        sens_identity: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sensitivity = SensitivityNet(sens_chans, pools, identity=sens_identity)
        self.cascades = nn.ModuleList(Cascade(chans, pools, dropout) for _ in range(cascades))
        self.recomputed = 0

    def forward(self, masked_kspace: Tensor, mask: Tensor, acs_lines: Tensor) -> Tensor:
        """Reconstruct a batch.

        Args:
            masked_kspace: complex (B, coil, H, W), zero where not measured.
            mask: bool (B, 1, 1, W), the measured phase-encode columns; or one for all samples.
            acs_lines: integer (B,), fully sampled centre columns of each sample; or one for all.

        Returns:
            The image, real (B, 1, H, W), in the data's unit.
        """
        mask = mask.expand(len(masked_kspace), -1, -1, -1)
        # Zeros have a gradient, too, for whoever asks for it.
        kept = torch.ones_like(mask) if masked_kspace.requires_grad else mask
        columns = Columns.of(kept)
        measured = columns.values_of(masked_kspace)  # k, (B, coil, H, n)
        maps, support = self._maps(measured, acs_lines, columns)
        is_measured = columns.gather(mask)

        y = measured
        adjoint = reduce(y, maps, columns)
        refined = torch.zeros_like(adjoint)  # v, (B, H, W)
        for t, cascade in enumerate(self.cascades):
            assert isinstance(cascade, Cascade)
            image = adjoint - refined
            again = self.recomputed > t + 1 and torch.is_grad_enabled()
            refinement = (
                checkpoint(cascade.unet, image, use_reentrant=False)
                if again
                else cascade.unet(image)
            )
            if t == 0:
                # d_0 = 0: the first weight does nothing. Distributed training waits for its zero.
                refinement = refinement + 0 * cascade.dc_weight
            else:
                difference = y - measured - expand(refined, maps, columns)
                y = y - cascade.dc_weight * is_measured * difference
                if t < len(self.cascades) - 1:
                    adjoint = reduce(y, maps, columns)
            refined = refined + torch.where(support, refinement, 0)
        return rss_of_sum(y, refined, maps, columns)[:, None]

    def train_only(self, cascades: int) -> None:
        """Let so many cascades, the last ones, learn, and nothing else.

        What does not learn keeps nothing for the backward pass, which ends before it.

        Raises:
            ValueError: there are not so many.
        """
        if not 1 <= cascades <= len(self.cascades):
            raise ValueError(f"{cascades} of {len(self.cascades)} cascades cannot be trained")
        self.requires_grad_(False)
        self.cascades[-cascades:].requires_grad_(True)

    def kept_bytes(self, masked_kspace: Tensor, itemsize: int) -> list[int]:
        """Bytes that each network keeps for the backward pass, about: sensitivity net, cascades.

        Args:
            masked_kspace: a batch (B, coil, H, W).
            itemsize: bytes of a number in the U-Nets.
        """
        batch, coils, height, width = masked_kspace.shape
        networks = [(batch * coils, self.sensitivity.unet)]
        for cascade in self.cascades:
            assert isinstance(cascade, Cascade)
            networks.append((batch, cascade.unet))
        return [
            images * unet.kept_bytes(height, width, itemsize) if _learns(unet) else 0
            for images, unet in networks
        ]

    def sensitivity_maps(self, masked_kspace: Tensor, mask: Tensor, acs_lines: Tensor) -> Tensor:
        """The maps that `forward` uses, of the same arguments; complex (B, coil, H, W)."""
        columns = Columns.of(mask.expand(len(masked_kspace), -1, -1, -1))
        maps, _ = self._maps(columns.values_of(masked_kspace), acs_lines, columns)
        return maps * columns.image_phase(maps).conj()

    def _maps(self, measured: Tensor, acs_lines: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
        """S times the columns' phase, and where any coil has a map, bool (B, H, W)."""
        acs_lines = acs_lines.expand(len(measured))
        center = measured * columns.gather(center_columns(acs_lines, columns.width))
        phase = columns.image_phase(measured)
        coil_images = to_coil_images(center, columns) * phase.conj()
        recompute = self.recomputed > 0 and torch.is_grad_enabled()
        maps, support = self.sensitivity(coil_images, recompute)
        return maps * phase, support


def _learns(network: nn.Module) -> bool:
    return any(weight.requires_grad for weight in network.parameters())
