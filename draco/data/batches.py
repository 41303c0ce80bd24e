"""From a prepared data set to batches: samples cut out, augmented and normalised."""

from __future__ import annotations

from draco.data.folder import Split
from draco.lazy import Tensor, torch

PADDING = 4  # pixels that the augmentation adds on each side, as in the original Draco's loaders (src/util.py)


def batch(split: Split, indices: Tensor, augment: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return the samples at `indices` (B,), as (x (B, c, h, w) float32, normalised, y (B,) int64).

    Args:
        split: what `load` returned.
        indices: which samples, (B,) int64, in that order; repetitions are fine.
        augment: source of the data set's augmentation: 4 pixels of reflected padding, a random crop back to the old
            size and a horizontal flip of every second image on average, as in the original Draco. None: no
            augmentation. Data sets of digits and clothes have none (`info.augment`), and the generator is not used.
    """
    if augment is not None and split.info.augment:
        pixels = _crop_and_flip(split.images, indices, augment)
    else:
        pixels = split.images[indices]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (split.info.mean, split.info.std))
    return pixels.float().div_(255).sub_(mean).div_(std), split.labels[indices]


def _crop_and_flip(images: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
    """Return (B, c, h, w) uint8: the images at `indices`, reflect-padded, randomly cropped and flipped, in one gather.

    Each image draws a row and a column offset in 0..2*PADDING, then whether it is flipped.
    """
    count, (channels, height, width) = len(indices), images.shape[1:]
    offsets = torch.randint(2 * PADDING + 1, (2, count, 1), generator=generator) - PADDING
    flipped = torch.randint(2, (count, 1), generator=generator).bool()
    rows = _reflect(torch.arange(height) + offsets[0], height)  # (B, h)
    columns = torch.arange(width)
    columns = torch.where(flipped, columns.flip(0), columns)
    columns = _reflect(columns + offsets[1], width)  # (B, w)
    chosen = images[indices].flatten(2)  # (B, c, h*w)
    positions = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # (B, h*w)
    return chosen.gather(2, positions[:, None, :].expand(-1, channels, -1)).view(count, channels, height, width)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Map positions that stick out of 0..size-1 back into it, mirrored at the border pixel."""
    return (size - 1) - ((size - 1) - positions.abs()).abs()
