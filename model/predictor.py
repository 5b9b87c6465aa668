"""The predictor: a cascade of U-Nets in k-space with learned sensitivity maps.

The paper's recursion. k is the measured k-space of all coils, M its mask, F the centred 2-D Fourier
transform, S the sensitivity maps. The state x_t is k-space of all coils:

    x_0 = k
    r_t     = sum over coils of conj(S) F^-1 x_t                   the coils combined: one image
    x_{t+1} = x_t - lambda_t M (x_t - k) - F S U_t(r_t)
    image   = RSS over coils of F^-1 x_T

What is computed here. Each step subtracts F S times an image, and otherwise changes only the
measured columns. So x_t = y_t - F S v_t, where v_t is one image, the sum of all U-Net outputs so
far, and y_t is zero outside the measured columns. With A = M F S, the recursion in y and v is

    y_0 = k,  v_0 = 0
    r_t     = A^H y_t - v_t                                        as sum over coils of |S|^2 = 1
    y_{t+1} = y_t - lambda_t (y_t - k - A v_t)                     M (x_t - k) = y_t - k - A v_t
    v_{t+1} = v_t + U_t(r_t)
    image   = RSS over coils of F^-1 y_T - S v_T

Both give the same image and the same gradients. For each cascade, the first form stores the k-space
of all coils; the second stores only the measured columns (about a quarter of it) and one image, and
needs 1-D Fourier transforms along phase encode instead of 2-D ones (`model/columns.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from banding_removal.model.columns import Columns, expand, reduce, rss_of_difference, to_coil_images
from banding_removal.model.sensitivity import SensitivityNet, center_columns
from banding_removal.model.unet import ComplexUNet, UNet, run_unet


class Cascade(nn.Module):
    """The weights of one refinement step.

    Attributes:
        unet: its U-Net.
        dc_weight: lambda, 1 at the start.
    """

    unet: ComplexUNet

    def __init__(self) -> None:
        super().__init__()
        self.dc_weight = nn.Parameter(torch.ones(1))


class UnrolledNetwork(nn.Module):
    """Masked multi-coil k-space -> RSS image: sensitivity net, T cascades, RSS over coils.

    The recursion above, for any U-Nets; a subclass makes them.

    Attributes:
        sensitivity: the sensitivity net.
        cascades: the cascades, `Cascade` each.
        recomputed: number of networks that store nothing for the backward pass, which runs them
            again, with the same result: the sensitivity net first, then the cascades in order.
    """

    sensitivity: SensitivityNet
    cascades: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.recomputed = 0

    def forward(
        self,
        masked_kspace: Tensor,
        mask: Tensor,
        acs_lines: Tensor,
        *,
        index: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Reconstruct a batch.

        Args:
            masked_kspace: complex (B, coil, H, W), zero where not measured.
            mask: bool (B, 1, 1, W), the measured phase-encode columns; or one for all samples.
            acs_lines: integer (B,), fully sampled centre columns of each sample; or one for all.
            index: positions of the measured columns of each sample, (n_b,) integers, ascending.
                None: they are looked up in `mask`, for which the CPU waits for a GPU.

        Returns:
            The image, real (B, 1, H, W), in the unit of the data.
        """
        acs_lines = self.center_lines(mask, acs_lines)
        mask = mask.expand(len(masked_kspace), -1, -1, -1)
        if masked_kspace.requires_grad:  # then its unmeasured columns get a gradient, too
            columns = Columns.of(torch.ones_like(mask))
        else:
            columns = Columns.of(mask) if index is None else Columns(tuple(index), mask.shape[-1])
        k = columns.values_of(masked_kspace)  # (B, coil, H, n)
        maps, support = self._maps(k, acs_lines, columns)
        measured = columns.gather(mask)  # M on the columns, (B, 1, 1, n)

        # y_0 = k and v_0 = 0, so the first step has no inconsistency to correct: y_1 = y_0 and
        # A^H y_1 = A^H y_0. Skipping these transforms saves 4 % of a training step (6 cascades).
        y, v = k, torch.zeros_like(maps[:, 0])
        for t, cascade in enumerate(self.cascades):
            assert isinstance(cascade, Cascade)
            # r_t = A^H y_t - v_t
            if t != 1:
                combined = reduce(y, maps, columns)
            r = combined - v
            # y_{t+1} = y_t - lambda_t M (y_t - k - A v_t)
            if t > 0:
                y = y - cascade.dc_weight * measured * (y - k - expand(v, maps, columns))
            # v_{t+1} = v_t + U_t(r_t), where there are maps
            refinement = run_unet(cascade.unet, r, recompute=self.recomputed > t + 1)
            v = v + torch.where(support, refinement, 0)
            if t == 0:
                # Unused here, but distributed training waits for a gradient of every weight: 0.
                v = v + 0 * cascade.dc_weight
        # RSS over coils of F^-1 y_T - S v_T
        return rss_of_difference(y, v, maps, columns)[:, None]

    def center_lines(self, mask: Tensor, acs_lines: Tensor) -> Tensor:  # noqa: ARG002
        """Number of centre columns that the sensitivity net sees, from `forward`'s arguments."""
        return acs_lines

    def train_only(self, cascades: int) -> None:
        """Train the last `cascades` cascades and nothing else.

        The other networks store nothing, because the backward pass does not reach them.

        Raises:
            ValueError: the predictor does not have that many cascades.
        """
        if not 1 <= cascades <= len(self.cascades):
            raise ValueError(f"{cascades} of {len(self.cascades)} cascades cannot be trained")
        self.requires_grad_(False)
        self.cascades[-cascades:].requires_grad_(True)

    def sensitivity_maps(self, masked_kspace: Tensor, mask: Tensor, acs_lines: Tensor) -> Tensor:
        """The maps that `forward` uses, from the same arguments; complex (B, coil, H, W)."""
        acs_lines = self.center_lines(mask, acs_lines)
        columns = Columns.of(mask.expand(len(masked_kspace), -1, -1, -1))
        maps, _ = self._maps(columns.values_of(masked_kspace), acs_lines, columns)
        return maps * columns.image_phase(maps).conj()

    def _maps(self, k: Tensor, acs_lines: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
        """S times the phase that `columns` asks for, and where there are maps, bool (B, H, W)."""
        acs_lines = acs_lines.expand(len(k))
        center = k * columns.gather(center_columns(acs_lines, columns.width))
        phase = columns.image_phase(k)
        coil_images = to_coil_images(center, columns) * phase.conj()
        maps, support = self.sensitivity(coil_images, self.recomputed > 0)
        return maps * phase, support


class Predictor(UnrolledNetwork):
    """The predictor of Defazio et al., "MRI Banding Removal via Adversarial Training" (2020).

    Section 4, after the end-to-end variational network of Sriram et al. (2020). The paper has 12
    cascades of 18 channels (12,931,532 weights), its development variant 6 (6,570,656).

    Args:
        cascades: number T of cascades.
        chans: width of the cascades' U-Nets; even.
        pools: number of poolings in each U-Net.
        sens_chans: width of the sensitivity net's U-Net; even.
        sens_pools: number of poolings in it; None: `pools`.
        sens_identity: start the sensitivity net as the identity, if it has at least four channels.
            The first maps are then the centre's coil images over their RSS. Random weights mix up
            the phases of the coils, and with some seeds training does not recover from that.
        dropout: of the cascades' U-Nets.
    """

    def __init__(
        self,
        *,
        cascades: int = 12,
        chans: int = 18,
        pools: int = 4,
        sens_chans: int = 8,
        sens_pools: int | None = None,
        sens_identity: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sensitivity = SensitivityNet()
        unet = UNet(sens_chans, sens_pools or pools)
        self.sensitivity.unet = ComplexUNet(unet)
        if sens_identity and sens_chans >= 4:
            unet.start_as_identity()
        self.cascades = nn.ModuleList(Cascade() for _ in range(cascades))
        for cascade in self.cascades:
            cascade.unet = ComplexUNet(UNet(chans, pools, dropout))
