"""Stable Diffusion 2.x: OpenCLIP-H as the text encoder, in two variants that look alike and predict noise or v."""

from trainer.base_models.spec import FamilySpec, TextEncoder, UNet, Variant
from trainer.i18n import _

SPEC = FamilySpec(
    name="sd21",
    title="Stable Diffusion 2.x",
    model="sd.SD",
    pipeline="StableDiffusionPipeline",
    pipeline_options={"safety_checker": None, "feature_extractor": None},
    unet=UNet(context_width=1024, depth=1, linear_projections=True),
    vae_scale=0.18215,
    metadata_prefixes=("stable-diffusion-v2", "sd_v2"),
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
        "epsilon": Variant("stable-diffusion-v2-512", "sd_v2_512", 512),
        "v_prediction": Variant("stable-diffusion-v2-768-v", "sd_v2_768_v", 768),
    },
    kohya_v2=True,
    ambiguous=True,
    recipe_names=(
        "sd2",
        "STABLE_DIFFUSION_20",
        "STABLE_DIFFUSION_20_BASE",
        "STABLE_DIFFUSION_21",
        "STABLE_DIFFUSION_21_BASE",
    ),
)
