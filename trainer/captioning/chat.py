"""Captions by models that answer a prompt about an image in their chat template: LLaVA, JoyCaption, Qwen-VL."""

import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image

from trainer.captioning import kinds
from trainer.captioning.loading import Untyped, load_known
from trainer.captioning.run import CaptionConfig
from trainer.errors import UserError

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Chat:
    """A model with a prompt."""

    model: Untyped
    tokenizer: Untyped
    image_processor: Untyped
    image_token: str
    text: str  # the prompt in the model's chat template, with one image token
    tokens: int

    def __call__(self, image: Image.Image) -> str:
        """Return the answer to the prompt, by its most likely tokens."""
        inputs = {name: self._on_device(tensor) for name, tensor in self._inputs(image).items()}
        tokens = self.model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(answer, skip_special_tokens=True)).strip()

    def _inputs(self, image: Image.Image) -> Inputs:
        """Return the inputs for an image, with an image token for each of its patches.

        The processors of transformers do the same, but those of Qwen-VL load a video processor: it needs torchvision.
        """
        pixels = self.image_processor(images=image, return_tensors="pt")
        text = self.text.replace(self.image_token, self.image_token * self._patches(pixels))
        inputs: Inputs = {**self.tokenizer(text, return_tensors="pt", add_special_tokens=False), **pixels}
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.model.config.image_token_id).long()
        return inputs

    def _patches(self, pixels: Inputs) -> int:
        if "image_grid_thw" in pixels:  # Qwen-VL sees each image in its own size
            return int(pixels["image_grid_thw"].prod() // self.image_processor.merge_size**2)
        vision = self.model.config.vision_config
        height, width = pixels["pixel_values"].shape[-2:]
        patches = (height // vision.patch_size) * (width // vision.patch_size)
        has_class_token = vision.model_type == "clip_vision_model"
        is_dropped = self.model.config.vision_feature_select_strategy == "default"
        return int(patches + has_class_token - is_dropped)

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.model.device, dtype)


def load(folder: Path, settings: CaptionConfig, device: torch.device) -> Chat:
    """Load a model that answers prompts.

    Raises:
        UserError: its chat template has no place for an image.
    """
    model = load_known(kinds.CHAT, folder, device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    image_processor = transformers.AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    image_token = str(tokenizer.convert_ids_to_tokens(model.config.image_token_id))
    text = render(tokenizer, image_token, settings.prompt, folder.name)
    return Chat(model, tokenizer, image_processor, image_token, text, settings.tokens)


def render(tokenizer: Untyped, image_token: str, prompt: str, name: str) -> str:
    """Return a prompt about one image in the model's chat template.

    Most templates take a message in parts, of which one is the image; JoyCaption's takes text and adds the image.

    Raises:
        UserError: neither gives a text with one image token.
    """
    prompt = prompt.replace(image_token, " ")
    in_parts = [{"type": "image"}, {"type": "text", "text": prompt}]
    for content in (in_parts, prompt, f"{image_token}\n{prompt}"):
        messages = [{"role": "user", "content": content}]
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except (ValueError, TypeError):  # it has no template, or one for other parts
            continue
        # A template for text alone writes out the parts as Python does.
        if text.count(image_token) == 1 and repr(in_parts[0]) not in text:
            return text
    raise UserError(
        "The chat template of {name!r} has no place for an image.", "Choose another model.", name=name[:100]
    )
