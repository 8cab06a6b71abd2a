"""The tokenizer's laws: nothing is lost, nothing that is only written so is special, same texts give same ids."""

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_attn.tokenization_translator import SMALLEST_VOCABULARY, check_text, save_tokenizer, train_tokenizer

TEXTS = [
    "Der alte Mann sitzt im Garten und liest die Zeitung.",
    "The old man sits in the garden and reads the newspaper.",
    "Die Kinder spielen im Garten, und der Hund schläft.",
    "The children play in the garden, and the dog sleeps.",
    "Don't pay 1250 €, pay 12!",
] * 3
TOKENIZER = train_tokenizer(TEXTS, 320)


def encode(text: str) -> list[int]:
    return TOKENIZER(text).input_ids


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(text):
    ids = encode(text)
    assert decode(ids) == text
    assert ids[-1] == TOKENIZER.eos_token_id
    assert min(ids[:-1], default=4) >= 4  # no <s>, <pad>, </s> or <unk> inside


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        "a , b !",
        "tab\tline\r\n\n",
        "one é, two e\u0301",
        "नमस्ते",
        "👩\u200d👩\u200d👧 👍🏽",
        "\x00\x7f",
        "\ufeff\u200b",
        "</s>",
        "<s> <pad> <unk></s>",
    ],
)
def test_difficult_texts_come_back(text):
    assert decode(encode(text)) == text


def test_text_that_spells_a_special_token_stays_text_even_if_it_was_frequent():
    tokenizer = train_tokenizer(["</s> <pad></s>", "<s></s> <unk></s>"] * 100, 400)
    assert set(tokenizer("<s></s> <unk><pad>").input_ids[:-1]).isdisjoint(range(4))


def test_special_tokens_have_the_ids_of_the_model():
    ids = [TOKENIZER.bos_token_id, TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id]
    assert ids == [0, 1, 2, 3]
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["<s>", "<pad>", "</s>", "<unk>"]


def test_golden_ids():
    """Ids never change: a saved model depends on them. The bytes come first, in the order of GPT-2's table."""
    assert encode("!~") == [4, 97, 2]
    golden = [277, 224, 82, 282, 274, 319, 224, 85, 307, 86, 284, 21, 224, 162, 228, 109, 17, 2]
    assert encode("The old dog reads 12 €.") == golden
    assert TOKENIZER.tokenize("Don't pay 12!") == ["Do", "n", "'t", "Ġpay", "Ġ1", "2", "!"]


def test_digits_stand_alone():
    tokenizer = train_tokenizer(["1250 1250 2024 2024"] * 50, 400)
    assert tokenizer.tokenize("1250 2024") == ["1", "2", "5", "0", "Ġ2", "0", "2", "4"]


def test_the_same_texts_give_the_same_file_in_any_order_and_process(tmp_path):
    here = train_tokenizer(TEXTS, 320).backend_tokenizer.to_str()
    shuffled = TEXTS.copy()
    random.Random(0).shuffle(shuffled)
    assert train_tokenizer(iter(shuffled), 320).backend_tokenizer.to_str() == here
    code = (
        "import json, sys; from hf_attn.tokenization_translator import train_tokenizer;"
        "print(train_tokenizer(json.loads(sys.argv[1]), 320).backend_tokenizer.to_str())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    root = Path(__file__).parents[1]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, json.dumps(TEXTS)]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_saved_and_loaded_it_is_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS[:5], "</s> ü 😀", "a , b"]
    assert loaded(texts).input_ids == TOKENIZER(texts).input_ids
    assert loaded.batch_decode(loaded(texts).input_ids, skip_special_tokens=True) == texts
    assert loaded.model_max_length == 4096
    assert loaded.padding_side == "right"
    assert sorted(loaded("text")) == ["attention_mask", "input_ids"]


def saved_class(directory: Path) -> str:
    return json.loads((directory / "tokenizer_config.json").read_text())["tokenizer_class"]


def test_files_name_a_class_that_transformers_4_knows(tmp_path):
    assert isinstance(TOKENIZER, PreTrainedTokenizerFast)
    TOKENIZER.save_pretrained(tmp_path / "own")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "own")
    save_tokenizer(loaded, tmp_path / "loaded")
    assert saved_class(tmp_path / "own") == saved_class(tmp_path / "loaded") == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(tmp_path / "loaded")("text").input_ids == TOKENIZER("text").input_ids
    assert sorted(path.name for path in (tmp_path / "loaded").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_targets_are_labels_that_end():
    encoded = TOKENIZER("The dog", text_target="Der Hund")
    assert encoded["labels"] == encode("Der Hund")
    assert encoded["labels"][-1] == TOKENIZER.eos_token_id


def test_padding_is_on_the_right():
    batch = TOKENIZER(["a", "a b c"], padding=True, return_tensors="pt")
    assert batch.input_ids[0].tolist()[:2] == encode("a")
    assert set(batch.input_ids[0, 2:].tolist()) == {TOKENIZER.pad_token_id}
    assert batch.attention_mask.sum(-1).tolist() == [2, len(encode("a b c"))]


def test_small_texts_give_a_small_vocabulary_and_say_so(caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    logging.getLogger("hf_attn").addHandler(caplog.handler)
    tokenizer = train_tokenizer(["one two", "one two"], 1000)
    assert SMALLEST_VOCABULARY < len(tokenizer) < 300
    assert f"{len(tokenizer)} tokens of the 1000 wanted" in caplog.text
    assert tokenizer.decode(tokenizer("zwölf").input_ids, skip_special_tokens=True) == "zwölf"


def broken_texts():
    yield "fine"
    yield 3


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (TEXTS, 259, "vocab_size 259 is below 260"),
        ([], 300, "no texts"),
        (iter(()), 300, "no texts"),
        ("one string", 300, "texts is one string"),
        (broken_texts(), 300, "text 1 is of type int, not str: 3"),
        (["fine", None], 300, "text 1 is of type NoneType"),
        (["half \ud83d"], 300, r"text 0 holds half a surrogate pair, '\\ud83d' at character 5"),
    ],
)
def test_bad_input_is_refused(texts, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, vocab_size)


def test_too_short_a_limit_is_refused():
    with pytest.raises(ValueError, match="model_max_length 1"):
        train_tokenizer(TEXTS, 300, model_max_length=1)


def test_the_smallest_vocabulary_is_bytes():
    tokenizer = train_tokenizer(["any"], SMALLEST_VOCABULARY)
    assert len(tokenizer) == SMALLEST_VOCABULARY
    assert len(tokenizer("zwölf").input_ids) == len("zwölf".encode()) + 1


def test_check_text_lets_text_pass():
    check_text("Größe 😀")
