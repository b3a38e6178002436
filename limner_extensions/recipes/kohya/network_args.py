"""Kinds of adapters in recipes of kohya's scripts: their network module with its arguments.

The meaning was read from kohya-ss/sd-scripts at commit 48d368f (networks/lora.py), KohakuBlueleaf/LyCORIS at commit
f49d30d (lycoris/kohya.py, lycoris/config.py) and bmaltais/kohya_ss at commit 8a524c7 (kohya_gui/lora_gui.py).
"""

from limner_extensions.recipes import sections
from limner_extensions.recipes.draft import Draft
from limner_extensions.recipes.families import ScriptedFlow
from limner_extensions.recipes.kohya import flow_scripts
from limner_extensions.recipes.values import flag, number, pairs, positive, text

# The GUI's name: the module, and its algorithm.
GUI_TYPES = {
    "standard": ("networks.lora", "lora"),
    "kohya locon": ("networks.lora", "locon"),
    "locon": ("lycoris.kohya", "locon"),
    "lora-fa": ("networks.lora_fa", "lora-fa"),
    "kohya dylora": ("networks.dylora", "dylora"),
}
MODULES = dict.fromkeys((script.network for script in flow_scripts.SCRIPTS), "lora") | pairs("""
    networks.lora=lora networks.lora_fa=lora-fa networks.dylora=dylora networks.loha=loha networks.lokr=lokr
    networks.oft=oft
""")
KINDS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
# LyCORIS' presets of layers: ours, and whether that is exact.
LAYERS = pairs("""
    full=conv unet-only=conv full-lin=attention+ff attn-mlp=attention+ff unet-transformer-only=attention+ff
    attn-only=attention unet-convblock-only=conv
""")
UNET_ONLY = ("unet-only", "unet-transformer-only", "unet-convblock-only")
DEFAULT_RANK, DEFAULT_FACTOR = 4, 8


def apply(draft: Draft, flow: ScriptedFlow | None) -> None:
    """Set the adapter and its layers, as flow matching has them if the recipe is for it."""
    keys = ("network_module", "LoRA_type", "network_args.algo")
    module, algorithm = _algorithm(draft)
    kind = sections.set_kind(draft, algorithm, KINDS, *keys)
    rank = draft.get("network_dim", positive, None) or DEFAULT_RANK
    alpha = draft.get("network_alpha", number, 1.0) or float(rank)
    draft.set("adapter.rank", rank, "network_dim")
    draft.set("adapter.alpha", alpha, "network_alpha")
    for key in ("network_weights", "lora_network_weights"):
        start = draft.get(key, text, "")
        if start and kind == "lora":
            draft.set("adapter.start", start, key)
    lycoris = module == "lycoris.kohya"
    if flow:
        preset = LAYERS.get(draft.get(_preset_key(draft), text, "full"), "conv")
        targets = "attention" if preset == "attention" else "attention+ff"
        flow_scripts.set_layers(draft, flow.kohya, lycoris=lycoris, targets=targets)
        draft.leave("decided here", _preset_key(draft))
    else:
        conv = lycoris or algorithm != "lora" or "LoRA_type" not in draft.values
        _set_layers(draft, rank, alpha, lycoris=lycoris, conv=conv)
    _set_dropout(draft, kind)
    _set_variants(draft, kind)


def argument(draft: Draft, name: str) -> str:
    """Return the key of an argument of the network: `network_args`, or the GUI's own field."""
    return draft.first(f"network_args.{name}", name)


def _algorithm(draft: Draft) -> tuple[str, str]:
    gui = draft.get("LoRA_type", text, "").lower()
    if network := GUI_TYPES.get(gui) or flow_scripts.gui_network(gui):
        return network
    if gui.startswith("lycoris/"):
        return "lycoris.kohya", gui.partition("/")[2].replace(" ", "-")
    module = draft.get("network_module", text, "networks.lora")
    if module == "lycoris.kohya":
        return module, draft.get("network_args.algo", text, "lora").lower()
    return module, MODULES.get(module, module)


def trains_unet_only(draft: Draft) -> bool:
    """Return True if LyCORIS' preset of layers leaves the text encoder out."""
    module, _name = _algorithm(draft)
    return module == "lycoris.kohya" and draft.get(_preset_key(draft), text, "full") in UNET_ONLY


def _preset_key(draft: Draft) -> str:
    return draft.first("network_args.preset", "LyCORIS_preset")


def _set_layers(draft: Draft, rank: int, alpha: float, *, lycoris: bool, conv: bool) -> None:
    preset_key = _preset_key(draft)
    dim_key, alpha_key = argument(draft, "conv_dim"), argument(draft, "conv_alpha")
    conv_rank = draft.get(dim_key, positive, None) if conv else None
    if lycoris:
        preset = draft.get(preset_key, text, "full")
        targets = LAYERS.get(preset, "conv")
        if preset not in LAYERS:
            draft.note("LyCORIS' preset {name} is not known; all layers are adapted.", name=preset[:40])
        elif preset in ("full-lin", "unet-convblock-only"):
            draft.note(
                "The layers of LyCORIS' preset {name} are not told apart here; the nearest are taken.", name=preset
            )
        conv_rank = (conv_rank or rank) if targets == "conv" else None
    else:
        preset_key, targets = "", "conv" if conv_rank else "attention+ff"
        if not conv_rank:
            draft.note(
                "sd-scripts also adapts the layers around the transformer blocks (proj_in, proj_out); Limner "
                "does so with the convolutions only."
            )
    draft.set("adapter.targets", targets, preset_key, *((dim_key, alpha_key) if conv_rank else ()))
    if not conv_rank:
        draft.leave("off", dim_key, alpha_key)
        return
    conv_alpha = draft.get(alpha_key, number, alpha if lycoris else 1.0)
    sections.set_convolution_rank(draft, conv_rank, conv_alpha, dim_key)


def _set_dropout(draft: Draft, kind: str) -> None:
    if kind == "lora":
        sections.set_dropout(draft, "network_dropout")
    elif draft.get("network_dropout", number, 0.0):
        draft.leave("no counterpart", "network_dropout")
    key = argument(draft, "rank_dropout")
    draft.take("adapter.rank_dropout", key, number, 0.0)


def _set_variants(draft: Draft, kind: str) -> None:
    dora, rslora = argument(draft, "dora_wd"), argument(draft, "rs_lora")
    if kind == "lora":
        draft.take("adapter.dora", dora, flag, False)
        draft.take("adapter.rslora", rslora, flag, False)
        names = ("loraplus_unet_lr_ratio", "loraplus_lr_ratio")
        keys = [key for name in names if (key := argument(draft, name)) in draft.values]
        ratios = [ratio for key in keys if (ratio := draft.get(key, number, 0.0)) > 0]
        draft.set("adapter.lora_plus_ratio", ratios[0] if ratios else 1.0, *keys[: 1 if ratios else 0])
    if kind == "lokr":
        key = argument(draft, "factor")
        factor = draft.get(key, positive, None)
        draft.set("adapter.factor", factor or DEFAULT_FACTOR, *([key] if factor else []))
        if not factor:
            draft.note("LyCORIS chooses LoKr's factor by the layer; here it is {factor}.", factor=DEFAULT_FACTOR)
