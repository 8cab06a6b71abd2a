"""Letters and accents are joined as SentencePiece joins them; pieces of equal likelihood stand in its order."""

import random
import unicodedata

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, normalizers

from hf_attn.interchange.sentencepiece_model import read_sentencepiece
from hf_attn.tokenization_opus_rules import Compositions, SinglePrecision
from tests.opus import GERMAN, train_model

MARKS = [chr(code) for code in (*range(0x300, 0x345), 0x3099, 0x309A, 0xFF9E, 0x5B4, 0x653, 0x654)]


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """A model with pieces "0", "00" and "000", of which many texts can be made in several orders."""
    file = train_model(tmp_path_factory.mktemp("zeros") / "zeros.spm", [*GERMAN, "0"] * 9, 120)
    message = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    for piece, score in (("0", -7.13), ("00", -6.41), ("000", -7.77)):
        found = [one for one in message.pieces if one.piece == piece] or [message.pieces.add(piece=piece)]
        found[0].score = score
    file.write_bytes(message.SerializeToString())
    return sentencepiece.SentencePieceProcessor(model_file=str(file)), read_sentencepiece(file)


def tokenizer_of(model) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([(piece.text, piece.score) for piece in model.pieces], unk_id=0))
    steps = [normalizers.Precompiled(model.charsmap), normalizers.Replace(" ", "▁"), normalizers.Prepend("▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def test_letters_and_accents(zeros):
    theirs, model = zeros
    joined = Compositions(tokenizer_of(model))
    texts = [unicodedata.normalize("NFD", text) for text in ("Größere", "Việt", "Ångström", "각하", "プ")]
    generator = random.Random(0)
    for _ in range(300):
        letters = "".join(
            generator.choices("aeounAEOUyкиはｶ", k=1) + generator.choices(MARKS, k=generator.randint(1, 3))
        )
        texts.append(letters)
    for text in texts:
        assert theirs.normalize(joined(text)) == theirs.normalize(text)
        assert len(joined(text)) <= len(text)
        one_by_one = "".join(theirs.normalize(character).removeprefix("▁") for character in joined(text))
        assert one_by_one == theirs.normalize(text).removeprefix("▁")  # nothing is left to join


def test_text_without_accents_stays_as_it_is(zeros):
    joined = Compositions(tokenizer_of(zeros[1]))
    for text in ("", "Straße", "1 ½ …", "\ud800", "👩‍👧"):
        assert joined(text) == text
    assert Compositions(Tokenizer(models.Unigram([("a", 0.0)], unk_id=0)))("a\u0301") == "a\u0301"


def test_equally_likely_orders(zeros):
    theirs, model = zeros
    tokenizer = tokenizer_of(model)
    in_order = SinglePrecision(tokenizer)
    changed = 0
    generator = random.Random(0)
    for _ in range(300):
        words = [*generator.choice(GERMAN).split(), *generator.choice(GERMAN).split()]
        words.insert(generator.randint(0, len(words)), "0" * generator.randint(4, 30))
        text = " ".join(words)
        encoding = tokenizer.encode(text)
        tokens = list(encoding.tokens)
        for place, run in in_order(encoding.ids, encoding.tokens):
            tokens[place : place + len(run)] = run
        assert tokens == theirs.encode(text, out_type=str)
        changed += tokens != encoding.tokens
    assert changed
