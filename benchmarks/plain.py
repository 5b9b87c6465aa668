"""A training step written down straight from the equations: what the project's own is compared to.

Nothing here is used by the project. Both networks, the loss and the step's two acts (Defazio,
Murrell, Recht, "MRI Banding Removal via Adversarial Training", 2020) are made of PyTorch's usual
layers, in the order of the formulas and as published code does it: an FFT shifts before and after,
every layer is called by itself and keeps what it needs for the backward. `copy_weights` takes the
project's weights over; `benchmarks/tests/test_step.py` shows that both then compute the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from banding_removal.data.batch import Batch

L1_WEIGHT = 0.01
REG_PARAM = 0.1


def to_kspace(image: Tensor) -> Tensor:
    """Centred orthonormal 2-D FFT of the last two axes, complex -> the same shape."""
    image = torch.fft.ifftshift(image, dim=(-2, -1))
    return torch.fft.fftshift(torch.fft.fft2(image, norm="ortho"), dim=(-2, -1))


def to_image(kspace: Tensor) -> Tensor:
    """The inverse of `to_kspace`."""
    kspace = torch.fft.ifftshift(kspace, dim=(-2, -1))
    return torch.fft.fftshift(torch.fft.ifft2(kspace, norm="ortho"), dim=(-2, -1))


def rss(coil_images: Tensor) -> Tensor:
    """Root of the sum of squares over coils, (B, coil, H, W) complex -> (B, 1, H, W) real."""
    return (coil_images.real**2 + coil_images.imag**2).sum(dim=1, keepdim=True).sqrt()


class ConvBlock(nn.Sequential):
    """Twice [3x3 convolution with bias, instance norm, ReLU, dropout of nothing]."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        layers: list[nn.Module] = []
        for chans in (in_chans, out_chans):
            layers += [
                nn.Conv2d(chans, out_chans, kernel_size=3, padding=1),
                nn.InstanceNorm2d(out_chans),
                nn.ReLU(),
                nn.Dropout2d(0.0),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """(B, 2, H, W) -> (B, 2, H, W); widths c, 2c, 4c, ... and as wide at the bottom as the last."""

    def __init__(self, chans: int, pools: int) -> None:
        super().__init__()
        widths = [chans * 2**level for level in range(pools)]
        self.down = nn.ModuleList(map(ConvBlock, [2, *widths[:-1]], widths))
        self.bottom = ConvBlock(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            map(ConvBlock, [2 * width for width in widths[::-1]], [*widths[-2::-1], chans])
        )
        self.head = nn.Sequential(
            nn.Conv2d(chans, chans // 2, kernel_size=1),
            nn.Conv2d(chans // 2, 2, kernel_size=1),
            nn.Conv2d(2, 2, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, 2, H, W)."""
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, kernel_size=2)
        x = self.bottom(x)
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        return self.head(x)


class ComplexUNet(nn.Module):
    """(B, H, W) complex -> the same: padded to multiples of 16, then normalised, and both undone.

    A channel without any contrast gives NaN.
    """

    def __init__(self, chans: int, pools: int) -> None:
        super().__init__()
        self.unet = UNet(chans, pools)

    def forward(self, image: Tensor) -> Tensor:
        """(B, H, W) complex -> (B, H, W) complex."""
        height, width = image.shape[-2:]
        x = torch.stack([image.real, image.imag], dim=1)
        missing_h, missing_w = -height % 16, -width % 16
        top, left = missing_h // 2, missing_w // 2
        x = F.pad(x, (left, missing_w - left, top, missing_h - top))
        mean = x.mean(dim=(-2, -1), keepdim=True)
        std = x.std(dim=(-2, -1), keepdim=True)
        x = self.unet((x - mean) / std) * std + mean
        x = x[:, :, top : top + height, left : left + width]
        return torch.complex(x[:, 0], x[:, 1])


class SensitivityNet(nn.Module):
    """Maps from the centre of k-space, all coils as one batch, divided by the RSS over coils."""

    def __init__(self, chans: int, pools: int) -> None:
        super().__init__()
        self.unet = ComplexUNet(chans, pools)

    def forward(self, masked_kspace: Tensor, acs_lines: Tensor) -> Tensor:
        """(B, coil, H, W) complex, (B,) -> (B, coil, H, W) complex."""
        width, lines = masked_kspace.shape[-1], acs_lines.view(-1, 1, 1, 1)
        column = torch.arange(width, device=lines.device)
        first = (width - lines + 1) // 2
        images = to_image(masked_kspace * ((column >= first) & (column < first + lines)))
        maps = self.unet(images.flatten(0, 1)).view(images.shape)
        return maps / rss(maps)


class Cascade(nn.Module):
    """x - lambda M (x - k) - F(S U(sum over coils of conj(S) F^-1 x))."""

    def __init__(self, chans: int, pools: int) -> None:
        super().__init__()
        self.dc_weight = nn.Parameter(torch.ones(1))
        self.unet = ComplexUNet(chans, pools)

    def forward(self, x: Tensor, k: Tensor, mask: Tensor, sens_maps: Tensor) -> Tensor:
        """(B, coil, H, W) complex -> the next x."""
        image = (sens_maps.conj() * to_image(x)).sum(dim=1)
        refinement = to_kspace(sens_maps * self.unet(image)[:, None])
        return x - self.dc_weight * mask * (x - k) - refinement


class PlainPredictor(nn.Module):
    """Masked k-space (B, coil, H, W), mask (B, 1, 1, W), (B,) centre lines -> (B, 1, H, W)."""

    def __init__(self, *, cascades: int, chans: int, pools: int, sens_chans: int) -> None:
        super().__init__()
        self.sensitivity = SensitivityNet(sens_chans, pools)
        self.cascades = nn.ModuleList(Cascade(chans, pools) for _ in range(cascades))

    def forward(self, masked_kspace: Tensor, mask: Tensor, acs_lines: Tensor) -> Tensor:
        """Complex (B, coil, H, W) -> real (B, 1, H, W)."""
        sens_maps = self.sensitivity(masked_kspace, acs_lines)
        x = masked_kspace
        for cascade in self.cascades:
            x = cascade(x, masked_kspace, mask, sens_maps)
        return rss(to_image(x))


class ResidualBlock(nn.Module):
    """Shortcut + conv(ReLU(GN(conv(ReLU(GN(x)))))), kernels 5x5, no biases."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        hidden = min(in_chans, out_chans)
        self.branch = nn.Sequential(
            nn.GroupNorm(max(1, in_chans // 32), in_chans),
            nn.ReLU(),
            nn.Conv2d(in_chans, hidden, kernel_size=5, padding=2, bias=False),
            nn.GroupNorm(max(1, hidden // 32), hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, out_chans, kernel_size=5, padding=2, bias=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_chans != out_chans:
            self.shortcut = nn.Conv2d(in_chans, out_chans, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        return self.shortcut(x) + self.branch(x)


class ShallowAdversary(nn.Sequential):
    """The published `shallow` adversary, image (B, 3, H, W) -> logit (B, 1)."""

    def __init__(self, chans: int = 64) -> None:
        super().__init__(
            nn.InstanceNorm2d(3, eps=0.0),
            nn.Conv2d(3, chans, kernel_size=5, padding=2),
            ResidualBlock(chans, chans),
            ResidualBlock(chans, chans),
            nn.MaxPool2d(4),
            ResidualBlock(chans, 2 * chans),
            ResidualBlock(2 * chans, 2 * chans),
            nn.MaxPool2d(4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.ReLU(),
            nn.Linear(2 * chans, 1),
        )


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """The weights of one formulation of a network in the other: same order, same shapes."""
    with torch.no_grad():
        for given, own in zip(source.parameters(), target.parameters(), strict=True):
            assert given.shape == own.shape, f"{tuple(given.shape)} is no {tuple(own.shape)}"
            own.copy_(given)


def crop(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both images cut to the smaller of their heights and widths, around the centre."""
    height, width = (min(image.shape[axis], target.shape[axis]) for axis in (-2, -1))

    def central(x: Tensor) -> Tensor:
        top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
        return x[..., top : top + height, left : left + width]

    return central(image), central(target)


def ssim(x: Tensor, y: Tensor, data_range: Tensor) -> Tensor:
    """Structural similarity, 7x7 uniform window, sample covariance, mean over the valid region."""
    window = (torch.ones(1, 1, 7, 7, device=x.device) / 49).to(x.dtype)
    c1, c2 = ((k * data_range.view(-1, 1, 1, 1)) ** 2 for k in (0.01, 0.03))
    mean_x, mean_y = F.conv2d(x, window), F.conv2d(y, window)
    var_x = 49 / 48 * (F.conv2d(x * x, window) - mean_x**2)
    var_y = 49 / 48 * (F.conv2d(y * y, window) - mean_y**2)
    cov = 49 / 48 * (F.conv2d(x * y, window) - mean_x * mean_y)
    numerator = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return (numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()


def reconstruction_loss(image: Tensor, batch: Batch) -> Tensor:
    """(1 - SSIM) + 0.01 L1 of the crops."""
    assert batch.target is not None
    image, target = crop(image, batch.target)
    return 1 - ssim(image, target, batch.data_range) + L1_WEIGHT * F.l1_loss(image, target)


def adversary_input(image: Tensor, rotated: Tensor) -> Tensor:
    """Square images: back where rotated, three channels, minus the mean, over the deviation."""
    upright = torch.where(rotated.view(-1, 1, 1, 1) > 0, image.swapaxes(-2, -1), image)
    x = upright.repeat(1, 3, 1, 1)
    mean, std = x.mean(dim=(1, 2, 3), keepdim=True), x.std(dim=(1, 2, 3), keepdim=True)
    return (x - mean) / std


@dataclass(kw_only=True)
class PlainPlayers:
    """Networks and optimisers; without an adversary it is stage 1."""

    predictor: nn.Module
    optimizer: torch.optim.Optimizer
    adversary: nn.Module | None = None
    adversary_optimizer: torch.optim.Optimizer | None = None
    bfloat16: bool = False  # the networks under autocast; losses are float32 as before

    @classmethod
    def of(
        cls, predictor: nn.Module, adversary: nn.Module | None = None, *, bfloat16: bool = False
    ) -> "PlainPlayers":
        """Networks with a plain Adam each."""
        networks = [network for network in (predictor, adversary) if network is not None]
        optimizer, *rest = (torch.optim.Adam(net.parameters(), lr=1e-4) for net in networks)
        return cls(
            predictor=predictor,
            optimizer=optimizer,
            adversary=adversary,
            adversary_optimizer=rest[0] if rest else None,
            bfloat16=bfloat16,
        )

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One for each network."""
        return [o for o in (self.optimizer, self.adversary_optimizer) if o is not None]

    def reconstruct(self, batch: Batch) -> Tensor:
        """The predictor's image, (B, 1, H, W)."""
        with self._autocast(batch.masked_kspace.device):
            image: Tensor = self.predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
        return image

    def classify(self, x: Tensor) -> Tensor:
        """The adversary's logits, (B, 1), of its input (B, 3, h, w)."""
        assert self.adversary is not None
        with self._autocast(x.device):
            logits: Tensor = self.adversary(x)
        return logits.to(x.dtype)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)


def backward(players: PlainPlayers, batch: Batch) -> dict[str, Tensor]:
    """Both acts' gradients, added to those that are there; the loss of each.

    Act 1: reconstruction loss + BCE(adversary(image), 1/2), the adversary's weights held fixed.
    Act 2, on the detached image: BCE(adversary(image), rotated) + 0.1 |d sum(logit) / dx|^2.
    """
    output = players.reconstruct(batch)
    loss = reconstruction_loss(output, batch)
    if players.adversary is None:
        loss.backward()
        return {"loss": loss.detach()}

    assert batch.target is not None
    image = crop(output, batch.target)[0]
    players.adversary.requires_grad_(False)
    logits = players.classify(adversary_input(image, batch.rotated))
    term = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.5))
    players.adversary.requires_grad_(True)
    (loss + term).backward()

    x = adversary_input(image.detach(), batch.rotated).requires_grad_()
    logits = players.classify(x)
    label = batch.rotated.to(logits)[:, None]
    classification = F.binary_cross_entropy_with_logits(logits, label)
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    penalty = REG_PARAM * (gradient**2).sum(dim=(1, 2, 3)).mean()
    (classification + penalty).backward()
    return {
        "loss": loss.detach(),
        "predictor_orientation": term.detach(),
        "adversary_orientation": classification.detach(),
        "penalty": penalty.detach(),
    }


def train_step(players: PlainPlayers, batch: Batch) -> dict[str, float]:
    """One step of both players on a batch; its losses."""
    for optimizer in players.optimizers:
        optimizer.zero_grad()
    losses = backward(players, batch)
    for optimizer in players.optimizers:
        optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}
