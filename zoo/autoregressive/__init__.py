"""Autoregressive models of binary data: MADE, and PixelCNN and PixelRNN for images. Exact nats."""

from .base import BinaryAutoregressive
from .made import MADE
from .pixelcnn import PixelCNN
from .pixelrnn import PixelRNN

__all__ = ["MADE", "BinaryAutoregressive", "PixelCNN", "PixelRNN"]
