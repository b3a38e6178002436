"""Tags by WD14 taggers, with ONNX Runtime or timm, whichever is installed; `selected_tags.csv` names their tags.

What they see is a square: the image on white, in the order blue, green, red.
"""

import csv
import importlib.util
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer import foreign_text
from trainer.captioning import classifier, kinds
from trainer.captioning.loading import IncompleteError
from trainer.captioning.run import CATEGORIES, CaptionConfig
from trainer.devices import Untyped
from trainer.errors import UserError

WEIGHTS = "model.safetensors"
# Of timm: families that taggers are made of, and what describes one of their networks.
ARCHITECTURES = re.compile(
    r"(vit|deit3?|beit(v2)?|eva02|swin(v2)?|convnext(v2)?|caformer|resnet|(tf_)?efficientnet(v2)?|mobilenetv[34])"
    r"[a-z0-9_]*(\.[a-z0-9_]+)?"
)
ARGUMENTS = re.compile(
    "act_layer|class_token|conv_bias|depths?|dims|drop_path_rate|drop_rate|dynamic_img_size|embed_dim|fc_norm|final_norm"
    "|global_pool|head_hidden_size|head_init_scale|head_norm_first|img_size|in_chans|init_values|kernel_sizes"
    "|ls_init_value|mlp_ratio|no_embed_class|norm_eps|norm_layer|num_heads|patch_size|pos_embed|pre_norm"
    "|pretrained_window_sizes|qk_norm|qkv_bias|ref_feat_shape|reg_tokens|scale_mlp|stem_type|strict_img_size|swiglu_mlp"
    "|use_grn|use_rot_pos_emb|window_size"
)
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Predict = Callable[[Pixels], Pixels]  # a square image [h, w, BGR] in 0..255; the probability of each tag


@dataclass(frozen=True)
class Tagger:
    """A WD14 tagger."""

    predict: Predict
    side: int
    names: tuple[str, ...]
    thresholds: tuple[float, ...]  # of each tag; above 1 for those that are not asked for
    blacklist: frozenset[str]

    def __call__(self, image: Image.Image) -> str:
        """Return the tags that are above the threshold of their category."""
        probabilities = self.predict(square(image, self.side)).tolist()
        rows = zip(self.names, probabilities, self.thresholds, strict=True)
        chosen = [(name, probability) for name, probability, threshold in rows if probability > threshold]
        return classifier.join_tags(chosen, self.blacklist)


def square(image: Image.Image, side: int) -> Pixels:
    """Return an image as a tagger sees it, [side, side, BGR]: centered on white, in 0 to 255."""
    whole = Image.new("RGB", (max(image.size), max(image.size)), (255, 255, 255))
    whole.paste(image, ((whole.width - image.width) // 2, (whole.height - image.height) // 2))
    resized = whole.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32)[:, :, ::-1]


def load_wd14(folder: Path, settings: CaptionConfig, device: torch.device) -> Tagger:
    """Load a tagger.

    Raises:
        UserError: neither timm nor ONNX Runtime is installed for the files that are here.
    """
    names, categories = read_tags(folder / kinds.TAGS)
    limits = {CATEGORIES[name]: settings.threshold for name in settings.categories}
    if CATEGORIES["character"] in limits:
        limits[CATEGORIES["character"]] = settings.character_threshold
    thresholds = tuple(limits.get(category, 2.0) for category in categories)
    version = kinds.timm_version()
    if (folder / WEIGHTS).is_file() and version >= kinds.LEAST_TIMM:
        predict, side = _load_timm(folder, len(names), device)
    elif (folder / kinds.ONNX).is_file() and importlib.util.find_spec("onnxruntime"):
        predict, side = _load_onnx(folder / kinds.ONNX)
    elif (folder / WEIGHTS).is_file() and version:
        raise UserError(
            "timm {version} is too old: it runs what the files of a model name.",
            'Update it: pip install "limner[taggers]"',
            version=".".join(map(str, version)),
        )
    else:
        raise UserError(
            "The tagger {name!r} needs timm or ONNX Runtime.",
            'Install one of them: pip install "limner[taggers]"',
            name=folder.name[:100],
        )
    return Tagger(predict, side, names, thresholds, classifier.parse_tags(settings.blacklist))


def read_tags(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of a tagger's tags, and the number of the category of each.

    Raises:
        ValueError: the file is not such a list.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return tuple(row["name"] for row in rows), tuple(int(row["category"]) for row in rows)
    except (KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{path.name} is not a list of tags") from error


def _load_timm(folder: Path, count: int, device: torch.device) -> tuple[Predict, int]:
    import timm  # noqa: PLC0415 - optional

    config = foreign_text.read_json(folder / kinds.CONFIG)
    seen, options = config["pretrained_cfg"], config.get("model_args") or {}
    _check_names(config["architecture"], options)
    model: Untyped = timm.create_model(config["architecture"], pretrained=False, num_classes=count, **options)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise IncompleteError(f"its weights are not those of {config['architecture']}") from error
    model = model.to(device).eval()
    mean, deviation = (torch.tensor(seen[name], device=device).view(3, 1, 1) for name in ("mean", "std"))

    def predict(pixels: Pixels) -> Pixels:
        inputs = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1) / 255
        probabilities: Pixels = model(((inputs - mean) / deviation)[None])[0].sigmoid().float().cpu().numpy()
        return probabilities

    return predict, int(seen["input_size"][-1])


def _check_names(architecture: object, options: object) -> None:
    """Check what timm is to make, by name: other arguments of it name files, and other names lead elsewhere.

    Raises:
        ValueError: one is not known.
    """
    if not isinstance(architecture, str) or not ARCHITECTURES.fullmatch(architecture):
        raise ValueError(f"Limner does not know the architecture {str(architecture)[:80]!r} of a tagger")
    if not isinstance(options, dict):
        raise ValueError("Limner does not know such settings of a tagger")
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        if not ARGUMENTS.fullmatch(name) or not all(isinstance(item, str | float | int | None) for item in values):
            raise ValueError(f"Limner does not know the setting {name[:80]!r} of a tagger")


def _load_onnx(path: Path) -> tuple[Predict, int]:
    import onnxruntime  # noqa: PLC0415 - optional

    onnxruntime.disable_telemetry_events()
    session: Untyped = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    (entry,) = session.get_inputs()

    def predict(pixels: Pixels) -> Pixels:
        (probabilities,) = session.run(None, {entry.name: np.ascontiguousarray(pixels[None])})
        return np.asarray(probabilities[0], dtype=np.float32)

    return predict, int(entry.shape[1])
