"""Claim: downsample undoes upsample exactly, and both are pixel shuffles.

    upsample:   every pixel becomes a square of four              = repeat channels, then shuffle
    downsample: every square of four pixels becomes its mean      = unshuffle, then take the mean

They are held against F.pixel_shuffle, F.pixel_unshuffle and squares small enough to do by hand.
"""
import pytest
import torch
from torch.nn import functional as F

from gan import DownSampleConv2D, UpSampleConv2D, downsample, upsample


@pytest.mark.parametrize("height, width", [(1, 1), (4, 4), (3, 5), (14, 2)])
def test_downsample_undoes_upsample_exactly(height, width):
    x = torch.randn(2, 5, height, width)
    assert upsample(x).shape == (2, 5, 2 * height, 2 * width)
    assert torch.equal(downsample(upsample(x)), x)


def test_by_hand():
    up = upsample(torch.tensor([[[[1.0, 2.0]]]]))
    assert up.tolist() == [[[[1, 1, 2, 2],
                             [1, 1, 2, 2]]]]
    down = downsample(torch.tensor([[[[1.0, 2.0],
                                      [3.0, 6.0]]]]))
    assert down.item() == (1 + 2 + 3 + 6) / 4


def test_upsample_repeats_the_channels_and_shuffles_them():
    x = torch.randn(2, 3, 4, 6)
    repeated = x.repeat_interleave(4, dim=1)                        # (2, 12, 4, 6)
    assert torch.equal(upsample(x), F.pixel_shuffle(repeated, 2))   # (2, 3, 8, 12)


def test_downsample_unshuffles_and_takes_the_mean():
    x = torch.randn(2, 3, 4, 6)
    unshuffled = F.pixel_unshuffle(x, 2)                            # (2, 12, 2, 3)
    mean = unshuffled.view(2, 3, 4, 2, 3).mean(2)                   # (2, 3, 2, 3)
    torch.testing.assert_close(downsample(x), mean)


@pytest.mark.parametrize("height, width", [(3, 4), (4, 3)])
def test_odd_sides_cannot_be_halved(height, width):
    """A pooling would drop the last row or column in silence."""
    with pytest.raises(ValueError, match="even sides"):
        downsample(torch.zeros(1, 1, height, width))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("kind, resample, side", [
    (UpSampleConv2D, upsample, 16), (DownSampleConv2D, downsample, 4)])
def test_layers_resample_first_and_convolve_then(kind, resample, side, kernel):
    """In double precision, because the upsampling one adds up in another order."""
    layer = kind(3, 5, kernel, padding=kernel // 2).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = F.conv2d(resample(x), layer.weight, layer.bias, padding=kernel // 2)
    assert expected.shape == (2, 5, side, side)
    torch.testing.assert_close(layer(x), expected)
