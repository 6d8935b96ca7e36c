"""The documents that the `stories` model is trained on, its tokenizer, and both together as arrays of ids.

Text needs Python alone; the tokenizer needs `tokenizers`.
"""
import lzma
import os
import random
import re

import corpus
from shape import SPECIAL_TOKENS, VOCABULARY

BOOK_SHARE = 0.22  # of the documents; the others are conversations

O200K_SPLIT = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])

PLAIN_PUNCTUATION = {"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--", "_": ""}


def read_books(path):
    """A text file (or .xz) of English prose as chunks of 600 to 3,000 characters that end with a paragraph.

    Headings, very short paragraphs and those with letters beyond ASCII are left out."""
    opened = lzma.open(path, "rt", encoding="utf-8") if path.endswith(".xz") else open(path, encoding="utf-8")
    with opened as file:
        text = file.read()
    for fancy, plain in PLAIN_PUNCTUATION.items():
        text = text.replace(fancy, plain)
    chunks, current = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"\s*\n\s*", " ", paragraph).strip()
        if not paragraph.isascii() or len(paragraph) < 20 or paragraph.isupper():
            continue
        current += ("\n\n" if current else "") + paragraph
        if len(current) > 600:
            chunks.append(current[:3000])
            current = ""
    return chunks


def documents(books, seed, count):
    """`count` documents: chunks of the books and conversations, mixed."""
    rng = random.Random(seed)
    conversations = corpus.documents(seed + 1)
    for _ in range(count):
        if rng.random() < BOOK_SHARE:
            yield "<|startoftext|>" + rng.choice(books) + "<|endoftext|>"
        else:
            yield next(conversations)


def train_tokenizer(books):
    """A byte-level BPE of the size of the vocabulary, the special tokens last."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(O200K_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL_TOKENS), special_tokens=[],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = (re.sub(r"<\|[a-z]+\|>", "\n\n", document) for document in documents(books, 1, 30000))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def load_tokenizer(folder):
    from tokenizers import Tokenizer
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def encode_documents(tokenizer, books):
    """(training ids, evaluation ids): uint16 arrays, 98,304 and 600 documents one after the other."""
    import numpy

    def ids(texts):
        return numpy.concatenate([numpy.array(e.ids, numpy.uint16) for e in tokenizer.encode_batch(list(texts))])

    cut = len(books) * 97 // 100  # the rest is held back
    training = [ids(documents(books[:cut], 100 + part, 8192)) for part in range(12)]
    return numpy.concatenate(training), ids(documents(books[cut:], 9999, 600))
