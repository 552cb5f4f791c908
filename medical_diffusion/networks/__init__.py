"""Networks: the VQ-GAN's autoencoder, quantiser and discriminators, and the diffusion UNet."""

from medical_diffusion.networks.autoencoder import Autoencoder
from medical_diffusion.networks.discriminators import PatchDiscriminator
from medical_diffusion.networks.quantizer import BottleneckOutput, VectorQuantizer
from medical_diffusion.networks.unet import UNet

__all__ = ["Autoencoder", "BottleneckOutput", "PatchDiscriminator", "UNet", "VectorQuantizer"]
