"""Count the tokens of captions for a base model; needs no model library.

All published base models use CLIP's tokenizer; the built-in one has its own.
"""

from functools import cache, lru_cache

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from trainer import foreign_text
from trainer.base_models import CONFIGS, MICRO, MICRO_FOLDER

_CLIP = CONFIGS / "clip"
_MICRO = MICRO_FOLDER / "tokenizer"
# Radford et al. 2021, https://arxiv.org/abs/2103.00020: words, single digits, and everything else, in lower case.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@cache
def limit(base: str) -> int:
    """Return the number of tokens that a base model reads, without the start and end tokens."""
    folder = _MICRO if base == MICRO else _CLIP
    settings = foreign_text.read_json(folder / "tokenizer_config.json")
    return int(settings["model_max_length"]) - 2


@lru_cache(maxsize=20_000)
def count(text: str, base: str) -> int:
    """Count the tokens of a text for a base model, without the start and end tokens."""
    tokenizer = _micro() if base == MICRO else _clip()
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


@cache
def _micro() -> Tokenizer:
    return Tokenizer.from_file(str(_MICRO / "tokenizer.json"))


@cache
def _clip() -> Tokenizer:
    vocabulary = foreign_text.read_json(_CLIP / "vocab.json")
    lines = (_CLIP / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [(first, second) for first, second in (line.split() for line in lines[1:] if line.strip())]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token="<|endoftext|>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer
