"""Stable Diffusion XL, Podell et al. 2023, https://arxiv.org/abs/2307.01952."""

from trainer.base_models.spec import FamilySpec, TextEncoder, UNet
from trainer.i18n import _

SPEC = FamilySpec(
    name="sdxl",
    title="Stable Diffusion XL",
    model="sdxl.SDXL",
    pipeline="StableDiffusionXLPipeline",
    pipeline_options={"add_watermarker": False},
    unet=UNet(context_width=2048, depth=10, linear_projections=True, size_conditioned=True, original_names=True),
    vae_scale=0.13025,
    text_encoders=(
        TextEncoder(
            component="text_encoder",
            title=_("first text encoder"),
            prefix="lora_te1_",
            single_file="conditioner.embedders.0.transformer.",
            embedding="conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
            width=768,
            tokenizer="tokenizer",
            pad_token="<|endoftext|>",
        ),
        TextEncoder(
            component="text_encoder_2",
            title=_("second text encoder"),
            prefix="lora_te2_",
            single_file="conditioner.embedders.1.model.transformer.resblocks.",
            embedding="conditioner.embedders.1.model.token_embedding.weight",
            width=1280,
            tokenizer="tokenizer_2",
            pad_token="!",
        ),
    ),
    variants={"epsilon": 1024, "v_prediction": 1024},
)
