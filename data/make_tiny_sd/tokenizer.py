"""A small CLIP tokenizer: byte-level pair encoding learnt on the captions.

Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016), in CLIP's form: lower
case, words end in "</w>". The vocabulary holds all 256 bytes, inside and at the end of a word, so that any
text tokenises; whole words of the captions become one token each.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77

# CLIP's split, without its English contractions' special case for what captions never hold.
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+")

# Words outside the training captions that people use in prompts: they get whole tokens too, so that a longer
# prompt does not fall apart into letters.
EXTRA_WORDS = (
    "red green blue yellow orange brown black white grey pink purple wooden metal golden small big old new "
    "highly detailed beautiful the of on with and in made from out top bottom left right"
)


def byte_symbols() -> list[str]:
    """A printable character for each byte (the table that GPT-2 introduced): printable Latin-1 stands for
    itself, the rest moves to U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    moved = {byte: 256 + n for n, byte in enumerate(b for b in range(256) if b not in printable)}
    return [chr(moved.get(byte, byte)) for byte in range(256)]


def split_words(text: str) -> list[str]:
    """Lower-case words, single digits and runs of punctuation."""
    return _WORDS.findall(text.lower())


def learn_merges(texts: Iterable[str], limit: int = 1400) -> list[tuple[str, str]]:
    """Pairs to join, the most frequent first, until every word is one symbol or `limit` is reached."""
    symbols = byte_symbols()
    counts = Counter(word for text in texts for word in split_words(text))
    words = {word: [symbols[byte] for byte in word.encode()] for word in counts}
    for parts in words.values():
        parts[-1] += WORD_END
    merges = []
    while len(merges) < limit:
        pairs = Counter()
        for word, parts in words.items():
            for pair in zip(parts, parts[1:], strict=False):
                pairs[pair] += counts[word]
        if not pairs:
            break
        # The alphabet breaks ties, so that the vocabulary does not depend on the order of the texts.
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _joined(parts, best) for word, parts in words.items()}
    return merges


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    concatenate, position = [], 0
    while position < len(parts):
        if tuple(parts[position : position + 2]) == pair:
            concatenate.append(pair[0] + pair[1])
            position += 2
        else:
            concatenate.append(parts[position])
            position += 1
    return concatenate


def write_tokenizer(folder: Path, captions: Iterable[str]) -> None:
    """vocab.json, merges.txt and tokenizer_config.json for transformers' CLIPTokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges([*sorted(set(captions)), EXTRA_WORDS])
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *(a + b for a, b in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
