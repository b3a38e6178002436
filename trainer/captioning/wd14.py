"""Tags by WD14 taggers, with ONNX Runtime or timm, whichever is installed; `selected_tags.csv` names their tags.

What they see is a square: the image on white, in the order blue, green, red.
"""

import csv
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer import foreign_text
from trainer.captioning import kinds, tags
from trainer.captioning.loading import IncompleteError, Untyped
from trainer.captioning.run import CATEGORIES, CaptionConfig
from trainer.errors import UserError

WEIGHTS = "model.safetensors"
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
        return tags.join(chosen, self.blacklist)


def square(image: Image.Image, side: int) -> Pixels:
    """Return an image as a tagger sees it, [side, side, BGR]: centered on white, in 0 to 255."""
    whole = Image.new("RGB", (max(image.size), max(image.size)), (255, 255, 255))
    whole.paste(image, ((whole.width - image.width) // 2, (whole.height - image.height) // 2))
    resized = whole.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32)[:, :, ::-1]


def load(folder: Path, settings: CaptionConfig, device: torch.device) -> Tagger:
    """Load a tagger.

    Raises:
        UserError: neither timm nor ONNX Runtime is installed for the files that are here.
    """
    names, categories = read_tags(folder / kinds.TAGS)
    limits = {CATEGORIES[name]: settings.threshold for name in settings.categories}
    if CATEGORIES["character"] in limits:
        limits[CATEGORIES["character"]] = settings.character_threshold
    thresholds = tuple(limits.get(category, 2.0) for category in categories)
    if (folder / WEIGHTS).is_file() and importlib.util.find_spec("timm"):
        predict, side = _load_timm(folder, len(names), device)
    elif (folder / kinds.ONNX).is_file() and importlib.util.find_spec("onnxruntime"):
        predict, side = _load_onnx(folder / kinds.ONNX)
    else:
        raise UserError(
            "The tagger {name!r} needs timm or ONNX Runtime.",
            'Install one of them: pip install "limner[taggers]"',
            name=folder.name[:100],
        )
    return Tagger(predict, side, names, thresholds, tags.parse(settings.blacklist))


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
    seen = config["pretrained_cfg"]
    model: Untyped = timm.create_model(
        config["architecture"], pretrained=False, num_classes=count, **config.get("model_args", {})
    )
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


def _load_onnx(path: Path) -> tuple[Predict, int]:
    import onnxruntime  # noqa: PLC0415 - optional

    session: Untyped = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    (entry,) = session.get_inputs()

    def predict(pixels: Pixels) -> Pixels:
        (probabilities,) = session.run(None, {entry.name: np.ascontiguousarray(pixels[None])})
        return np.asarray(probabilities[0], dtype=np.float32)

    return predict, int(entry.shape[1])
