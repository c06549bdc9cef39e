"""A small CLIP tokenizer: byte-level byte-pair encoding, trained on the captions.

The method is that of Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016),
in the variant of CLIP: text is converted to lower case, and words end with "</w>". The vocabulary contains
all 256 bytes, both inside and at the end of a word, so any text can be encoded. Each word of the captions is
one token.
"""

import json
from collections.abc import Iterable
from pathlib import Path

WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
MAX_MERGES = 1400

# CLIP's regular expression for the words of a text, without special tokens.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# Words that are common in prompts, even if they do not occur in the captions. Each word becomes one token, so
# that it is not split into letters.
EXTRA_WORDS = (
    "red green blue yellow orange brown black white grey pink purple wooden metal golden small big old new "
    "highly detailed beautiful the of on with and in made from out top bottom left right"
)


def byte_symbols() -> list[str]:
    """Return a printable character for each of the 256 bytes (GPT-2's table), sorted."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def learn_merges(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of symbols to merge, the most frequent pair first.

    The list ends when each word is one symbol, or after MAX_MERGES pairs.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * 256 + MAX_MERGES, end_of_word_suffix=WORD_END, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges[:MAX_MERGES]]


def write_tokenizer(folder: Path, captions: Iterable[str]) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json for transformers' CLIPTokenizer."""
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
