"""Stable Diffusion 2.x: OpenCLIP-H as the text encoder, in two variants that look alike and predict noise or v."""

from trainer.base_models.spec import FamilySpec, TextEncoder, UNet
from trainer.i18n import _

SPEC = FamilySpec(
    name="sd21",
    title="Stable Diffusion 2.x",
    model="sd.SD",
    pipeline="StableDiffusionPipeline",
    pipeline_options={"safety_checker": None, "feature_extractor": None},
    unet=UNet(context_width=1024, depth=1, linear_projections=True),
    vae_scale=0.18215,
    text_encoders=(
        TextEncoder(
            component="text_encoder",
            title=_("text encoder"),
            prefix="lora_te_",
            single_file="cond_stage_model.model.transformer.resblocks.",
            embedding="cond_stage_model.model.token_embedding.weight",
            width=1024,
            tokenizer="tokenizer",
            pad_token="!",
        ),
    ),
    variants={
        "epsilon": 512,
        "v_prediction": 768,
    },
    ambiguous=True,
)
