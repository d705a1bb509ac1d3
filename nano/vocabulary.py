"""The tokenizers of nano-flux: every word of the world is one token, any other is spelled out."""

import string
from collections.abc import Sequence
from typing import Final

from transformers import CLIPTokenizer, T5Tokenizer

from nano.architecture import CLIP_TOKENS, TEXT_TOKENS
from nano.world import ATTRIBUTES

_WORDS: Final = sorted(
    {word for values in ATTRIBUTES.values() for value in values for word in value.split()}
    | {"a", "background"}
)
# Words that no picture shows but that people write: one token each, so that they are told from a
# made-up trigger word such as `tok`, which is spelled out.
COMMON_WORDS: Final = (
    *("animal", "art", "baby", "bird", "book", "boy", "car", "cartoon", "cat", "character"),
    *("city", "dog", "drawing", "face", "flower", "girl", "hat", "house", "image", "logo"),
    *("man", "painting", "person", "photo", "picture", "portrait", "robot", "sky", "style", "toy"),
    *("tree", "woman"),
)
_CHARACTERS: Final = sorted(set(string.printable) - set(string.whitespace))
# Unigram scores are log probabilities: a known word is far likelier than its letters.
_WORD_SCORE: Final = -5.0
_CHARACTER_SCORE: Final = -10.0


def build_t5_tokenizer() -> T5Tokenizer:
    """A Unigram tokenizer with a piece for every word and, as a fallback, every ASCII character."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(f"\u2581{word}", _WORD_SCORE) for word in _WORDS]
    pieces += [(character, _CHARACTER_SCORE) for character in _CHARACTERS]
    pieces += [(f"\u2581{word}", _WORD_SCORE) for word in COMMON_WORDS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_TOKENS)


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the order of the CLIP vocabulary.

    Source: bytes_to_unicode in openai/CLIP, clip/simple_tokenizer.py.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]


def build_clip_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE tokenizer whose merges spell the words of the world and common ones.

    A merge could also join letters of an unseen word ("to" in "tok"): harmless, since what
    remains is still made of tokens of its own.
    """
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet)]
    merges: list[tuple[str, str]] = []
    tokens += _spell_words(_WORDS, merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    tokens += _spell_words(COMMON_WORDS, merges)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS)


def _spell_words(words: Sequence[str], merges: list[tuple[str, str]]) -> list[str]:
    """The tokens of the merges that spell `words`; the merges are added to those there are."""
    tokens = []
    for word in words:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        for merge in merges:
            symbols = _merged(symbols, merge)
        while len(symbols) > 1:
            merge = (symbols[0], symbols[1])
            merges.append(merge)
            tokens.append("".join(merge))
            symbols = _merged(symbols, merge)
    return tokens


def _merged(symbols: list[str], merge: tuple[str, str]) -> list[str]:
    """`symbols` with every neighbouring pair `merge` joined, from the left."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == merge:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def build_caption_vocabulary() -> dict[str, int]:
    """BERT's special tokens, the words of the world and, as a fallback, letters and digits."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits]
    pieces = [*special, ",", *_WORDS, *letters, *(f"##{letter}" for letter in letters)]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
