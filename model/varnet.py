"""The end-to-end variational network of Sriram et al. (2020), as in the public `fastmri` package.

Weights have the names, shapes and meaning of `fastmri.models.VarNet`: a state dict of either loads
into the other, and outputs and gradients agree. The recursion is that of `predictor`. What differs
from the network of Defazio et al. is the U-Net (`VarNetUNet`), its normalisation before padding,
and which columns count as the centre (`VarNet.center_lines`).
"""

import torch
from torch import Tensor, nn

from banding_removal.model.layers import (
    Layer,
    average_pool,
    begin,
    conv_norm,
    dropout,
    leaky_relu,
    pointwise,
    reflect_and_concatenate,
    up_conv_norm,
)
from banding_removal.model.predictor import Cascade, UnrolledNetwork
from banding_removal.model.sensitivity import SensitivityNet
from banding_removal.model.unet import SIGNED, ComplexUNet, pass_through

SLOPE = 0.2  # of the leaky ReLUs


class VarNetBlock(nn.Module):
    """Twice [3x3 convolution, instance norm, leaky ReLU, dropout], (B, in, H, W) -> (B, out, H, W).

    The identities stand for the norm and the rest, so that weights have their public names.
    """

    def __init__(self, in_chans: int, out_chans: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_chans, out_chans, kernel_size=3, padding=1, bias=False),
            *(nn.Identity() for _ in range(3)),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
        )
        self.dropout = dropout

    @property
    def convs(self) -> list[nn.Conv2d]:
        """The two convolutions."""
        return [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]

    def forward(self, x: Layer) -> Layer:
        """(B, in, H, W) -> (B, out, H, W)."""
        for conv in self.convs:
            x = leaky_relu(conv_norm(conv, x), SLOPE)
            x = dropout(x, self.dropout, self.training)
        return x


class VarNetUp(nn.Module):
    """[Transposed convolution, instance norm, leaky ReLU], (B, in, H, W) -> (B, out, 2 H, 2 W)."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        conv = nn.ConvTranspose2d(in_chans, out_chans, kernel_size=2, stride=2, bias=False)
        self.layers = nn.Sequential(conv)

    def forward(self, x: Layer) -> Layer:
        """(B, in, H, W) -> (B, out, 2 H, 2 W)."""
        (conv,) = self.layers
        assert isinstance(conv, nn.ConvTranspose2d)
        return leaky_relu(up_conv_norm(conv, x), SLOPE)


class VarNetUNet(nn.Module):
    """The public package's U-Net, (B, 2, H, W) -> (B, 2, H, W).

    On the way down, the widths are c, 2c, 4c, ...; the bottom is twice as wide as the last of
    these. No 3x3 convolution has a bias; the 1x1 convolution at the end has one.

    Args:
        chans: width c of the first block.
        pools: number of 2x2 average-poolings, at least 1.
        dropout: probability of dropping a channel after each leaky ReLU of the blocks.

    Raises:
        ValueError: there is no channel or no pooling.
    """

    def __init__(self, chans: int, pools: int, dropout: float = 0.0) -> None:
        super().__init__()
        if chans < 1 or pools < 1:
            raise ValueError(
                f"a U-Net needs at least one channel and one pooling, got {chans=}, {pools=}"
            )
        widths = [chans * 2**level for level in range(pools + 1)]
        self.down_sample_layers = nn.ModuleList(
            VarNetBlock(w_in, w_out, dropout)
            for w_in, w_out in zip([2, *widths[:-2]], widths[:-1], strict=True)
        )
        self.conv = VarNetBlock(widths[-2], widths[-1], dropout)
        self.up_conv = nn.ModuleList()
        self.up_transpose_conv = nn.ModuleList()
        for width in widths[-2::-1]:
            self.up_transpose_conv.append(VarNetUp(2 * width, width))
            self.up_conv.append(VarNetBlock(2 * width, width, dropout))
        self.up_conv[-1] = nn.Sequential(self.up_conv[-1], nn.Conv2d(chans, 2, kernel_size=1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, 2, H, W), any H and W of at least 2^(pools + 1).

        The blocks compute in the dtype of `image`; the 1x1 convolution and the result have the
        dtype of the weights.
        """
        x = begin(image)
        skips = []
        for block in self.down_sample_layers:
            x = block(x)
            skips.append(x)
            x = average_pool(x)
        x = self.conv(x)
        last, head = self._last_block, self._head
        for up, block in zip(self.up_transpose_conv, [*self.up_conv[:-1], last], strict=True):
            x = block(reflect_and_concatenate(up(x), skips.pop()))
        return pointwise(head, x)

    def start_as_identity(self) -> None:
        """As `UNet.start_as_identity`.

        Raises:
            ValueError: there are fewer than four channels.
        """
        first = self.down_sample_layers[0]
        assert isinstance(first, VarNetBlock)
        pass_through([*first.convs, *self._last_block.convs], self._head, SLOPE)

    @property
    def _last_block(self) -> VarNetBlock:
        last = self.up_conv[-1]
        assert isinstance(last, nn.Sequential) and isinstance(last[0], VarNetBlock)
        return last[0]

    @property
    def _head(self) -> nn.Sequential:
        last = self.up_conv[-1]
        assert isinstance(last, nn.Sequential)
        return last[1:]


class VarNetCascade(Cascade):
    """A cascade whose U-Net has its public name, `model`."""

    def __init__(self, model: ComplexUNet) -> None:
        super().__init__()
        self.model = model

    @property
    def unet(self) -> ComplexUNet:  # type: ignore[override]
        """The U-Net."""
        return self.model


class VarNetSensitivity(SensitivityNet):
    """A sensitivity net whose U-Net has its public name, `norm_unet`."""

    def __init__(self, norm_unet: ComplexUNet) -> None:
        super().__init__()
        self.norm_unet = norm_unet

    @property
    def unet(self) -> ComplexUNet:  # type: ignore[override]
        """The U-Net."""
        return self.norm_unet


class VarNet(UnrolledNetwork):
    """The end-to-end variational network of Sriram et al. (2020), with the public names of weights.

    Args:
        cascades: number of cascades.
        chans: width of the cascades' U-Nets.
        pools: number of poolings in each.
        sens_chans: width of the sensitivity net's U-Net.
        sens_pools: number of poolings in it; None: `pools`.
        sens_identity: start the sensitivity net as the identity, as in `Predictor` (nearly, for
            sizes that are padded). The package starts it at random.
        dropout: of the cascades' U-Nets.
        center_from_mask: the centre is found in the mask, as the package does unless it is given
            the number of lines. False: it has `acs_lines` columns, as in the package's training.
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
        center_from_mask: bool = True,
    ) -> None:
        super().__init__()
        unet = VarNetUNet(sens_chans, sens_pools or pools)
        if sens_identity and sens_chans >= len(SIGNED):
            unet.start_as_identity()
        self.sens_net = VarNetSensitivity(ComplexUNet(unet, pad_first=False))
        self.cascades = nn.ModuleList(
            VarNetCascade(ComplexUNet(VarNetUNet(chans, pools, dropout), pad_first=False))
            for _ in range(cascades)
        )
        self.center_from_mask = center_from_mask

    @property
    def sensitivity(self) -> SensitivityNet:  # type: ignore[override]
        """The sensitivity net."""
        return self.sens_net

    def center_lines(self, mask: Tensor, acs_lines: Tensor) -> Tensor:
        """Number of centre columns, (B,): as given, or twice the shorter half of the centre.

        The halves are the measured columns that follow each other to the left and to the right of
        column W // 2, this one included on the right. The number is 1 if one of them is empty.
        Unlike the package, a half of k-space that is measured completely is not taken as empty.
        """
        if not self.center_from_mask:
            return acs_lines
        columns = mask[:, 0, 0].to(torch.int64)
        middle = columns.shape[-1] // 2
        left, right = (
            half.cumprod(-1).sum(-1) for half in (columns[:, :middle].flip(-1), columns[:, middle:])
        )
        return (2 * torch.minimum(left, right)).clamp(min=1)
