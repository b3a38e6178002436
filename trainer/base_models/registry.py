"""Registry of the families of base models: a new one is added here, and in a file of facts and a file of its model."""

from typing import Literal

from trainer.base_models.spec import FamilySpec, Transformer, UNet
from trainer.base_models.specs import (
    anima,
    chroma,
    flux,
    flux2_klein,
    krea2,
    qwen_image,
    sd3,
    sd15,
    sd21,
    sdxl,
    z_image,
)

FamilyName = Literal[
    "sd15", "sd21", "sdxl", "sd3", "flux", "chroma", "z_image", "flux2_klein", "qwen_image", "krea2", "anima"
]
FAMILIES: dict[FamilyName, FamilySpec] = {
    "sd15": sd15.SPEC,
    "sd21": sd21.SPEC,
    "sdxl": sdxl.SPEC,
    "sd3": sd3.SPEC,
    "flux": flux.SPEC,
    "chroma": chroma.SPEC,
    "z_image": z_image.SPEC,
    "flux2_klein": flux2_klein.SPEC,
    "qwen_image": qwen_image.SPEC,
    "krea2": krea2.SPEC,
    "anima": anima.SPEC,
}
UNETS: dict[FamilyName, UNet] = {name: spec.unet for name, spec in FAMILIES.items() if spec.unet}
TRANSFORMERS: dict[FamilyName, Transformer] = {
    name: spec.transformer for name, spec in FAMILIES.items() if spec.transformer
}
DEFAULT: FamilyName = "sd15"  # of a model or file that does not tell; the built-in base model is one, too
