"""Networks: autoencoders with their bottlenecks and discriminators, external ones, the diffusion UNet, Swin UNETR."""

from medical_diffusion.networks.autoencoder import Autoencoder
from medical_diffusion.networks.bottleneck import Bottleneck, BottleneckOutput
from medical_diffusion.networks.codec import LatentCodec
from medical_diffusion.networks.discriminators import PatchDiscriminator
from medical_diffusion.networks.external import ExternalAutoencoder
from medical_diffusion.networks.gaussian import GaussianBottleneck
from medical_diffusion.networks.quantizer import VectorQuantizer
from medical_diffusion.networks.swin import SwinUNETR
from medical_diffusion.networks.unet import UNet
from medical_diffusion.networks.wiener import WienerSkip

__all__ = [
    "Autoencoder",
    "Bottleneck",
    "BottleneckOutput",
    "ExternalAutoencoder",
    "GaussianBottleneck",
    "LatentCodec",
    "PatchDiscriminator",
    "SwinUNETR",
    "UNet",
    "VectorQuantizer",
    "WienerSkip",
]
