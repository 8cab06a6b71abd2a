"""What an OPUS-MT repository holds, in small: two SentencePiece models, vocab.json, and a Marian model."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

from tests.tiny import randomise

TAGS = (">>deu<<", ">>cmn_Hans<<")
GERMAN = (
    "Der Hund läuft über die Straße.",
    "Größere Bäume stehen hinter dem alten Haus!",
    "Wie viele Äpfel kostet das? Genau 12,50 €.",
    "Sie übersetzt Sätze – manchmal auch schöne.",
    "Am 3. Mai 1998 war es kühl und naß.",
    "„Ja“, sagte er, „heute früh schon.“",
    "Die Katze schläft auf dem warmen Ofen.",
    "Wir fahren morgen mit dem Zug nach München.",
)
ENGLISH = (
    "The dog runs across the street.",
    "Larger trees stand behind the old house!",
    "How many apples is that? Exactly $12.50.",
    "She translates sentences – sometimes even nice ones.",
    "It was cool and wet on May 3, 1998.",
    "“Yes”, he said, “this morning already.”",
    "The cat sleeps on the warm stove: 中国 and Zürich.",
    "Tomorrow we take the train to Munich.",
)


def sentences(examples: tuple[str, ...], count: int, seed: int = 0) -> list[str]:
    """New sentences out of the words of these."""
    generator = random.Random(seed)
    words = [word for example in examples for word in example.split()]
    return [" ".join(generator.choices(words, k=generator.randint(1, 14))) for _ in range(count)]


def train_model(file: Path, texts: list[str], vocab_size: int, **settings: Any) -> Path:
    """A SentencePiece model of these texts."""
    with file.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=stream,
            **{
                "vocab_size": vocab_size,
                "model_type": "unigram",
                "hard_vocab_limit": False,
                "minloglevel": 2,
                "num_threads": 1,
                **settings,
            },
        )
    return file


def pieces(file: Path) -> list[str]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [model.id_to_piece(i) for i in range(3, len(model))]


def save_tokenizer_files(directory: Path, left_out: int = 0, separate: bool = False, **settings: Any) -> Path:
    """source.spm, target.spm, vocab.json (target_vocab.json, too, if `separate`) and tokenizer_config.json.

    Args:
        left_out: so many pieces of the source's model, and half as many of the target's, are not in vocab.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = [
        train_model(directory / f"{name}.spm", sentences(examples, 400), 160, **settings)
        for name, examples in (("source", GERMAN), ("target", ENGLISH))
    ]
    generator = random.Random(0)
    known = []
    for file in files:
        long = [piece for piece in pieces(file) if len(piece) > 2]
        known.append(set(pieces(file)) - set(generator.sample(long, left_out // (1 + len(known)))))
    if not separate:
        known[0] |= known.pop()
    for name, words in zip(("vocab.json", "target_vocab.json"), known, strict=False):
        ordered = sorted(words)
        generator.shuffle(ordered)
        ordered = ["</s>", "<unk>", "<pad>", *ordered] if separate else ["</s>", "<unk>", *ordered, *TAGS, "<pad>"]
        (directory / name).write_text(json.dumps({word: i for i, word in enumerate(ordered)}), encoding="utf-8")
    said = {"source_lang": "deu", "target_lang": "eng", "separate_vocabs": separate, "model_max_length": 256}
    (directory / "tokenizer_config.json").write_text(json.dumps({**said, "tokenizer_class": "MarianTokenizer"}))
    return directory


def marian_tokenizer(directory: Path) -> MarianTokenizer:
    """transformers' own; it recommends a library that it then makes no use of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MarianTokenizer.from_pretrained(directory)


def save_marian(directory: Path, seed: int = 0, std: float = 0.4, **config: Any) -> MarianMTModel:
    """All of an OPUS-MT repository, with random weights."""
    save_tokenizer_files(directory)
    words = len(json.loads((directory / "vocab.json").read_text()))
    shape = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 64,
        "scale_embedding": True,
        "activation_function": "swish",
    }
    special = {"pad_token_id": words - 1, "decoder_start_token_id": words - 1, "eos_token_id": 0}
    model = MarianMTModel(MarianConfig(**{**shape, **special, "vocab_size": words, **config}))
    positions = [stack.embed_positions.weight.clone() for stack in (model.model.encoder, model.model.decoder)]
    randomise(model, seed, std).eval()
    for stack, computed in zip((model.model.encoder, model.model.decoder), positions, strict=True):
        stack.embed_positions.weight.data.copy_(computed)
    model.generation_config = GenerationConfig(
        **special,
        num_beams=4,
        max_length=24,
        bad_words_ids=[[words - 1]],
        forced_eos_token_id=0,
        no_repeat_ngram_size=2,
    )
    model.save_pretrained(directory)
    return model
