"""The convolutional encoder and decoder of vae.py and cvae.py (--arch conv), layer by layer.

The encoder halves a square image until 4 to 7 pixels a side are left (28 -> 14 -> 7, or
32 -> 16 -> 8 -> 4) and doubles the channels each time; fully connected layers follow. The decoder
is its mirror image (Radford et al. 2016, arXiv 1511.06434).
"""
from torch import nn

from common import fail


def check_square(height, width):
    """End the program unless images can be halved down to a square of 4 to 7 pixels a side."""
    side = height
    while side > 7 and side % 2 == 0:
        side //= 2
    if height != width or height <= 7 or side > 7:
        fail(f"--arch conv needs square images that can be halved down to 4 to 7 pixels, not "
             f"{height}x{width}; use --image-size 28, 32 or 64")


def conv_encoder(in_channels, image_height, image_width, args):
    """Images (B, in_channels, H, W) -> (B, 2 * latent): mu and logvar."""
    check_square(image_height, image_width)
    layers = []
    channels = in_channels
    width = args.hidden
    side = image_height
    while side > 7:
        side //= 2
        layers.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))   # (B, width, side, side)
        layers += norm_and_activation(width, args)
        channels = width
        width = 2 * width
    layers.append(nn.Flatten())                                   # (B, channels * side * side)
    layers += dense(channels * side * side, 2 * args.latent, args)                # (B, 2 * latent)
    return nn.Sequential(*layers)


def conv_decoder(in_features, out_channels, side, args):
    """Codes (B, in_features) -> (B, out_channels, side, side)."""
    stages = []                       # from the image inwards, with the widths of the encoder
    channels = out_channels
    width = args.hidden
    while side > 7:
        side //= 2
        up = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)   # doubles the side
        # (B, width, side, side) -> (B, channels, 2 * side, 2 * side)
        stages.append([*norm_and_activation(width, args), up])
        channels = width
        width = 2 * width

    layers = dense(in_features, channels * side * side, args)     # (B, channels * side * side)
    layers.append(nn.Unflatten(1, (channels, side, side)))        # (B, channels, side, side)
    for stage in reversed(stages):                                # ... (B, out_channels, H, W)
        layers += stage
    return nn.Sequential(*layers)


def norm_and_activation(width, args):
    """What follows a convolution to `width` channels, or comes before a transposed one. Dropout is
    here, of whole channels, and not in the fully connected layers."""
    layers = [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
    if args.dropout > 0:
        layers.append(nn.Dropout2d(args.dropout))
    return layers


def dense(n_in, n_out, args):
    """Fully connected layers from n_in to n_out features, args.layers hidden ones in between."""
    units = 16 * args.hidden          # about as many as a small image has pixels: 512 by default
    layers = []
    for _ in range(args.layers):
        layers += [nn.Linear(n_in, units), nn.LeakyReLU(0.2)]
        n_in = units
    layers.append(nn.Linear(n_in, n_out))
    return layers
