"""What else people choose as a base model, and how it is told: by parts of its tensors' names, or by its pipeline.

The marks of architectures are those by which diffusers 0.42 (`loaders/single_file_utils.py`) and ComfyUI 3cd7b32f
(`comfy/model_detection.py`) know them.
"""

from trainer.i18n import _

DISTILLED = _("a latent consistency model that is told the guidance, which cannot be trained here")
_FLUX_2, _FLUX_3 = _("a FLUX.2 model, which cannot be trained here"), _("a FLUX.3 model, which cannot be trained here")
_QWEN, _LUMINA = (
    _("a Qwen-Image model, which cannot be trained here"),
    _("a Lumina 2 model, which cannot be trained here"),
)
_HIDREAM, _WAN = (
    _("a HiDream model, which cannot be trained here"),
    _("a Wan video model, which cannot be trained here"),
)
_Z_IMAGE, _CHROMA = (
    _("a Z-Image model, which cannot be trained here"),
    _("a Chroma model, which cannot be trained here"),
)
_HUNYUAN_VIDEO = _("a HunyuanVideo model, which cannot be trained here")
_HUNYUAN, _LTX = (
    _("a Hunyuan-DiT model, which cannot be trained here"),
    _("an LTX video model, which cannot be trained here"),
)
_SANA, _PIXART = _("a Sana model, which cannot be trained here"), _("a PixArt model, which cannot be trained here")
_KOLORS, _AURA = _("a Kolors model, which cannot be trained here"), _("an AuraFlow model, which cannot be trained here")
_CASCADE, _MOCHI = (
    _("a Stable Cascade model, which cannot be trained here"),
    _("a Mochi model, which cannot be trained here"),
)
_COSMOS, _OMNIGEN = (
    _("a Cosmos model, which cannot be trained here"),
    _("an OmniGen model, which cannot be trained here"),
)
_KANDINSKY = _("a Kandinsky model, which cannot be trained here")

# Kinds by parts of their tensors' names. The first that is found names the file.
FILES = {
    _("an adapter; choose it in Try out, and the base model it was trained on here"): (
        ".lora_up.",
        ".lora_A.",
        ".hada_w1_a",
        ".lokr_w1",
    ),
    _FLUX_2: ("single_stream_modulation.", "double_stream_modulation_img."),
    _FLUX_3: ("early_stream_modulations.", "ref_time_in."),
    _CHROMA: ("distilled_guidance_layer.",),
    _HUNYUAN_VIDEO: ("individual_token_refiner.",),
    _QWEN: ("txt_in.text_norm.", "diffusion_model.txt_norm.weight", "transformer_blocks.0.img_mod.1."),
    _Z_IMAGE: ("layers.0.adaLN_modulation.0.", "cap_pad_token"),
    _LUMINA: ("cap_embedder.0.", "cap_embedder.1."),
    _HIDREAM: ("double_stream_blocks.", "caption_projection.0.linear."),
    _WAN: ("head.modulation", "vace_blocks."),
    _MOCHI: ("attn.qkv_x.", "t5_yproj."),
    _LTX: ("patchify_proj.",),
    _SANA: ("blocks.0.cross_attn.q_linear.", "transformer_blocks.0.ff.conv_inverted."),
    _PIXART: ("blocks.0.cross_attn.kv_linear.", "t_block.1.", "adaln_single.emb."),
    _HUNYUAN: ("mlp_t5.0.",),
    _AURA: ("double_layers.0.attn.w", "cond_seq_linear."),
    _COSMOS: ("net.x_embedder.proj.1.", "blocks.block0.blocks.0.block.attn."),
    _OMNIGEN: ("time_caption_embed.",),
    _KANDINSKY: ("visual_transformer_blocks.",),
    _KOLORS: ("encoder_hid_proj.",),
    DISTILLED: ("time_embed.cond_proj.", "time_embedding.cond_proj."),
    _CASCADE: ("effnet", "clip_txt_mapper."),
    _("a motion module for AnimateDiff"): ("motion_modules.",),
    _("a ControlNet"): ("control_model.", "input_hint_block.", "controlnet_cond_embedding."),
    _("an IP-Adapter"): ("ip_adapter.",),
}
# A model of a kind that is known otherwise, or a part of one, if nothing else of a base model is in the file.
PARTS = {
    _("a FLUX model that cannot be trained here"): ("double_blocks.",),
    _("a Stable Diffusion 3 model that cannot be trained here"): ("joint_blocks.",),
    _("the transformer of a FLUX model alone; give the whole folder"): ("single_transformer_blocks.",),
    _("the transformer of a Stable Diffusion 3 model alone; give the whole folder"): (
        "transformer_blocks.0.ff_context.",
    ),
}
PARTS_WITHOUT_DENOISER = {
    _("a VAE"): ("first_stage_model.", "decoder.conv_in.weight"),
    _("a text encoder"): ("text_model.encoder.", "transformer.resblocks.", "encoder.block.0."),
    _("a UNet without its text encoder and VAE"): ("down_blocks.0.", "input_blocks.0.0.weight"),
}
# Kinds by how the names of their pipelines begin; the first that fits.
PIPELINES = {
    "LatentConsistency": DISTILLED,
    "Flux2": _FLUX_2,
    "Flux3": _FLUX_3,
    "Flux": _("a FLUX model that cannot be trained here"),
    "StableDiffusion3": _("a Stable Diffusion 3 model that cannot be trained here"),
    "StableCascade": _CASCADE,
    "QwenImage": _QWEN,
    "Lumina": _LUMINA,
    "HiDream": _HIDREAM,
    "ZImage": _Z_IMAGE,
    "Chroma": _CHROMA,
    "Wan": _WAN,
    "HunyuanVideo": _HUNYUAN_VIDEO,
    "HunyuanDiT": _HUNYUAN,
    "LTX": _LTX,
    "Sana": _SANA,
    "PixArt": _PIXART,
    "Kolors": _KOLORS,
    "AuraFlow": _AURA,
    "Mochi": _MOCHI,
    "Cosmos": _COSMOS,
    "OmniGen": _OMNIGEN,
    "Kandinsky": _KANDINSKY,
}
