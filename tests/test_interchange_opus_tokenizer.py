"""The fast tokenizer of two SentencePiece models writes the ids that MarianTokenizer writes, of any text."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_attn.tokenization_opus import OpusTokenizer
from tests.opus import ENGLISH, GERMAN, marian_tokenizer, pieces, save_tokenizer_files, sentences, train_model

KINDS = {
    "shared": {},
    "pieces left out": {"left_out": 9},
    "two vocabularies": {"separate": True},
    "not normalised": {"normalization_rule_name": "identity"},
    "few characters": {"character_coverage": 0.98},
}
ODD = [
    *(
        "",
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "Hund  und   Katze ",
        "x\x00y",
        "\u2028a\u2029b",
        "\u200bHund\u200b",
        "\ufeffHund",
    ),
    *("</s>", "Hund </s> Katze", "<unk>", "a<pad>b", "</s></s>", "<s>", "Hund</s>"),
    *(">>deu<<", ">>deu<< Hund", ">>deu<<Hund", ">>deu<<  x", ">>xyz<< Hund", ">> deu << x", "Hund >>deu<< Katze"),
    *(
        ">>",
        ">><<",
        "<<x",
        ">>deu<",
        ">>a\nb<< c",
        ">>deu<< >>cmn_Hans<< x",
        " >>deu<< x",
        ">>deu<<</s>>>deu<<x",
        ">>.<<",
    ),
    *(
        "▁",
        "▁▁Hund▁",
        "Hund▁ ",
        "＞＞deu＜＜ x",
        "中国",
        "a中国b",
        "ßß",
        "ß",
        "中",
        "Züri中ch",
        ">>deu<< 中国",
        ">>deu<<中",
    ),
    *("ｶﾞ ﾊﾟ", "…“”", "½ ①", "ﬁnden", "İstanbul", "a\u0301\u0302", "\u0301", "\u0301\u0302x", "\u200c\u0301"),
    *("👩‍👩‍👧 ja 👍🏽", "\u00a0\u0301x", "00000 000", "-----", "......" * 3, "Hund" * 300),
    unicodedata.normalize("NFD", "Größere Bäume, Tiếng Việt, Ångström"),
    "\u1100\u1161\u11a8",
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_tokenizer_files(tmp_path_factory.mktemp("opus"), **options) for kind, options in KINDS.items()}


@pytest.fixture(scope="module")
def both(directories):
    return {kind: (marian_tokenizer(at), OpusTokenizer.from_pretrained(at)) for kind, at in directories.items()}


def assert_same(both, texts: list[str]) -> None:
    theirs, ours = both
    for place in ("text", "text_target"):
        expected, found = (tokenizer(**{place: texts}) for tokenizer in (theirs, ours))
        for text, wanted, got in zip(texts, expected["input_ids"], found["input_ids"], strict=True):
            assert got == wanted, (place, text)
            if theirs.separate_vocabs and place == "text":
                continue  # only what is in the target's vocabulary can be written out
            assert ours.decode(got, skip_special_tokens=True) == theirs.decode(wanted, skip_special_tokens=True)
            assert ours.convert_ids_to_tokens(got) == theirs.convert_ids_to_tokens(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_of_both_languages(kind, both):
    texts = [*sentences(GERMAN, 200, seed=1), *sentences(ENGLISH, 200, seed=1)]
    assert_same(both[kind], texts)
    ids = both[kind][1](texts)["input_ids"]
    assert sum(map(len, ids)) > 2000


@pytest.mark.parametrize("kind", KINDS)
def test_odd_texts(kind, both):
    assert_same(both[kind], ODD)


@pytest.mark.parametrize("kind", ["shared", "pieces left out", "few characters"])
def test_texts_of_random_characters(kind, both):
    letters = [*"abcäöüßéñ Hund  \t\n>><<中国ｶﾞ…½▁'\"-.,?!00001--\u0301\u0308", "</s>", "<unk>", ">>deu<<"]
    marks = [chr(code) for code in (*range(0x300, 0x330), *range(0x5B0, 0x5BD), *range(0x64B, 0x656), 0x200D, 0xFF9E)]
    others = [chr(code) for code in range(0x20, 0x3000, 7)]
    generator = random.Random(0)
    pools = (letters, [*marks, *"aeiou "], others)
    texts = ["".join(generator.choices(pool, k=generator.randint(0, 16))) for pool in pools for _ in range(300)]
    assert_same(both[kind], texts)


def test_what_begins_like_a_tag_may_be_a_piece_of_the_other_language(tmp_path):
    source = train_model(tmp_path / "source.spm", list(GERMAN) * 3, 90)
    target = train_model(tmp_path / "target.spm", [f"{text} >> {text} >>>" for text in ENGLISH] * 3, 90)
    words = ["</s>", "<unk>", ">>", ">>>", "<<", "中>>", *dict.fromkeys([*pieces(source), *pieces(target)])]
    words = [*dict.fromkeys(words), ">>deu<<", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    texts = [">>", ">> Der", "Der >> Hund", ">>> x", "Hund >>> <<", ">>deu<< >> Hund", "中>>", "x 中>> <<"]
    assert_same((marian_tokenizer(tmp_path), OpusTokenizer.from_pretrained(tmp_path)), texts)


@settings(max_examples=100)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cn"])))
def test_any_text(both, text):
    assert_same(both["shared"], [text, f">>deu<< {text}"])


def test_special_tokens_and_lengths(both):
    theirs, ours = both["shared"]
    for name in ("eos_token_id", "unk_token_id", "pad_token_id", "bos_token_id", "model_max_length", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.supported_language_codes == [">>deu<<", ">>cmn_Hans<<"]
    assert ours.convert_tokens_to_ids([">>deu<<", "Hund", "▁Hu", "\ufdd0"]) == theirs.convert_tokens_to_ids(
        [">>deu<<", "Hund", "▁Hu", "\ufdd0"]
    )
    texts = [GERMAN[0], "", " ".join(GERMAN) * 9]
    for options in ({"padding": True}, {"truncation": True, "max_length": 7}, {"add_special_tokens": False}):
        assert dict(ours(texts, **options)) == dict(theirs(texts, **options))


def test_special_tokens_are_written_out_with_a_space(both):
    theirs, ours = both["shared"]
    ids = theirs([GERMAN[0], "Hund 中中 Katze", "</s>"], padding=True)["input_ids"]
    for row in ids:
        assert ours.decode(row) == " ".join(theirs.decode(row).split(" ")).replace("  ", " ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, r"of source\.spm, target\.spm, vocab\.json there is no vocab\.json; copy"),
        ("source.spm", None, r"of source\.spm, target\.spm, vocab\.json there is no source\.spm; copy"),
        ("target.spm", None, r"of source\.spm, target\.spm, vocab\.json there is no target\.spm; copy"),
        ("vocab.json", '{"a": 0', "vocab.json is damaged"),
        ("vocab.json", '{"</s>": 0, "<unk>": 2}', "gives its 2 words other ids than 0 to 1"),
        ("vocab.json", '{"</s>": 0, "<unk>": 1}', "lacks <pad>"),
        ("source.spm", "text", "source.spm is no SentencePiece model"),
    ],
)
def test_missing_and_damaged_files_are_named(name, content, message, directories, tmp_path):
    for file in directories["shared"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        OpusTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bpe"}, "of type 'bpe' instead of 'unigram'"),
        ({"byte_fallback": True, "vocab_size": 400}, "writing unknown characters as bytes"),
        ({"user_defined_symbols": ["@"]}, "with pieces that its user has defined"),
        ({"add_dummy_prefix": False}, "without ▁ before words"),
        ({"remove_extra_whitespaces": False}, "that keeps several spaces"),
    ],
)
def test_other_kinds_of_models_are_refused(options, message, tmp_path):
    file = train_model(tmp_path / "source.spm", list(GERMAN), **{"vocab_size": 90, **options})
    (tmp_path / "target.spm").write_bytes(file.read_bytes())
    words = ["</s>", "<unk>", "<pad>", *pieces(file)]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    with pytest.raises(ValueError, match=f"source.spm is a model .*{message}"):
        OpusTokenizer.from_pretrained(tmp_path)
