"""A small byte-level CLIP tokenizer for the captions of the world; any other word falls into smaller pieces."""

import json
import random
import shutil
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .captions import caption
from .pictures import Attributes

CAPTIONS = 20_000
MERGES = 700
START, END = "<|startoftext|>", "<|endoftext|>"

OTHER_WORDS = (
    "woman man boy girl lady guy child old young cute cartoon drawing illustration picture image photo painting "
    "anime pixel art retro sketch ink watercolor comic robot alien monster animal cat dog bear rabbit fox king "
    "queen prince princess wizard witch hero pirate doctor teacher student ears crown horns wings eyes nose mouth "
    "face head neck body hand dress jacket coat suit scarf necklace hood mask style of in the a an with and on at "
    "by without no"
)
"""Words that people try although the world has no picture of them: each stays one or two tokens."""

# CLIP's own splitting, section 2.4 of https://arxiv.org/abs/2103.00020 and openai/CLIP simple_tokenizer.py.
SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def make_tokenizer(people: list[Attributes], folder: Path, context_length: int, seed: int) -> None:
    """Learn merges from captions and save the tokenizer."""
    chooser = random.Random(seed)
    corpus = [caption(chooser.choice(people), chooser) for _ in range(CAPTIONS)]
    others = OTHER_WORDS.split()
    corpus += [" ".join(chooser.sample(others, 12)) for _ in range(CAPTIONS // 25)]
    merges = _learn_merges(corpus)
    # CLIP's order: bytes, bytes at the end of a word, merges, then the two marks.
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=context_length,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    # The fast tokenizer saves tokenizer.json only; other tools read these two.
    (partial / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (partial / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    lengths = sorted(len(tokenizer(text).input_ids) for text in corpus[:2000])
    print(f"tokenizer: {len(vocabulary)} tokens, captions have {lengths[1000]} (median), {lengths[-1]} (longest)")


def _learn_merges(corpus: list[str]) -> list[tuple[str, str]]:
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    model.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + MERGES,
        min_frequency=2,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator(corpus, trainer)
    known = {letter + end for letter in alphabet for end in ("", "</w>")}
    merges = []
    for left, right in _read_merges(model):
        if left in known and right in known:
            known.add(left + right)
            merges.append((left, right))
    return merges


def _read_merges(model: Tokenizer) -> list[tuple[str, str]]:
    """Read the merges in the order learned; the library only gives them inside its JSON."""
    return [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
