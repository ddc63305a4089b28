"""Networks that several model files share, beside those of `inference.networks`, and checks.

All act on the last axis, flat images included, so that particles broadcast.
"""

from .checks import check_image_shape, check_rows, check_sizes, mean_and_scale
from .codes import CodeChain, CodePrior, SpatialDecoder, SpatialEncoder
from .conditions import Condition
from .conv import ConvDecoder, ConvEncoder, decoder_for, encoder_for
from .residual import ResidualDecoder, ResidualEncoder
from .spectral import ConvCritic, ConvGenerator, SpectralConv2d, SpectralLinear, largest_singular
from .unet import UNet

__all__ = [
    "CodeChain",
    "CodePrior",
    "Condition",
    "ConvCritic",
    "ConvDecoder",
    "ConvEncoder",
    "ConvGenerator",
    "ResidualDecoder",
    "ResidualEncoder",
    "SpatialDecoder",
    "SpatialEncoder",
    "SpectralConv2d",
    "SpectralLinear",
    "UNet",
    "check_image_shape",
    "check_rows",
    "check_sizes",
    "decoder_for",
    "encoder_for",
    "largest_singular",
    "mean_and_scale",
]
