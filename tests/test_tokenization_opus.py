"""The tokenizer of two languages comes back from where it was saved, for targets too, with and without the package."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from hf_attn.tokenization_opus import OpusTokenizer
from tests.opus import ENGLISH, GERMAN, marian_tokenizer, save_tokenizer_files
from tests.tiny import tiny_translator

TEXTS = [*GERMAN, ">>deu<< Zürich 中国", "", "a\u0308 </s> x"]


@pytest.fixture(scope="module", params=[0, 9], ids=["all pieces known", "some unknown"])
def directory(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer_files(tmp_path_factory.mktemp("opus"), left_out=request.param)


@pytest.fixture(scope="module")
def expected(directory) -> dict[str, list[list[int]]]:
    return dict(marian_tokenizer(directory)(TEXTS, text_target=[*ENGLISH, "a", "b", "c"]))


def ids(tokenizer) -> dict[str, list[list[int]]]:
    return dict(tokenizer(TEXTS, text_target=[*ENGLISH, "a", "b", "c"]))


def test_auto_tokenizer_takes_it_for_marian_s_files(directory, expected):
    assert ids(tokenizer := AutoTokenizer.from_pretrained(directory)) == expected
    assert type(tokenizer) is OpusTokenizer and tokenizer.is_fast
    assert ids(AutoTokenizer.from_pretrained(directory, model_max_length=9)) == expected


def test_it_comes_back(directory, expected, tmp_path):
    tokenizer = OpusTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(tmp_path / "one")
    tiny_translator().save_pretrained(tmp_path / "one")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"tokenizer.json", "target_tokenizer.json", "tokenization_opus.py", "tokenization_opus_rules.py"} < names
    again = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert type(again) is OpusTokenizer and ids(again) == expected
    assert (again.model_max_length, again.source_lang, again.known) == (256, "deu", tokenizer.known)
    again.save_pretrained(tmp_path / "two")
    name = "tokenizer_config.json"
    assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert ids(AutoTokenizer.from_pretrained(tmp_path / "two")) == expected
    for copied in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert ids(copied) == expected


def test_the_code_travels(tmp_path):
    tokenizer = OpusTokenizer.from_pretrained(save_tokenizer_files(tmp_path / "theirs", left_out=9))
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "expected.json").write_text(json.dumps(ids(tokenizer)))
    code = """
import json, sys
from transformers import AutoTokenizer
folder, texts, targets, file = sys.argv[1], *map(json.loads, sys.argv[2:4]), sys.argv[4]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert "hf_attn" not in sys.modules and type(tokenizer).__name__ == "OpusTokenizer"
assert dict(tokenizer(texts, text_target=targets)) == json.load(open(file))
"""
    arguments = [json.dumps(TEXTS), json.dumps([*ENGLISH, "a", "b", "c"]), str(tmp_path / "expected.json")]
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "saved"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_sources_and_decoding_need_no_code_of_ours(directory, tmp_path):
    tokenizer = OpusTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(tmp_path)
    plain = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    sentences = [*GERMAN, ">>deu<< Zürich 中国"]
    if not any(tokenizer._unknown):
        assert plain(sentences)["input_ids"] == tokenizer(sentences)["input_ids"]
    targets = tokenizer(text_target=list(ENGLISH))["input_ids"]
    for row in targets:
        assert plain.decode(row, skip_special_tokens=True) == tokenizer.decode(row, skip_special_tokens=True)


def test_added_tokens_are_known_to_both(directory):
    tokenizer = OpusTokenizer.from_pretrained(directory)
    before, new_words = len(tokenizer), {"<name>", "Hund"} - tokenizer.get_vocab().keys()
    assert tokenizer.add_tokens(["<name>", "Hund"]) == len(new_words)
    new = tokenizer.convert_tokens_to_ids("<name>")
    assert new >= before
    tokenizer._switch_to_target_mode()
    assert tokenizer.convert_tokens_to_ids("<name>") == new
    both = tokenizer("Der <name> bellt", text_target="The <name> barks")
    assert new in both["input_ids"] and new in both["labels"]
    assert "<name>" in tokenizer.decode(both["labels"])


def test_a_batch_for_training(directory):
    tokenizer = OpusTokenizer.from_pretrained(directory)
    model = tiny_translator(vocab_size=tokenizer.known[0], pad_token_id=tokenizer.pad_token_id, eos_token_id=0)
    rows = [tokenizer(source, text_target=target) for source, target in zip(GERMAN, ENGLISH, strict=True)]
    batch = DataCollatorForSeq2Seq(tokenizer, model=model)(rows)
    assert batch["labels"].shape[0] == len(GERMAN) and (batch["labels"] == -100).any()
    assert torch.isfinite(model(**batch).loss)


def test_words_are_found_in_the_text(directory):
    tokenizer = OpusTokenizer.from_pretrained(directory)
    found = tokenizer(GERMAN[0], return_offsets_mapping=True)
    pieces = [GERMAN[0][begin:end] for begin, end in found["offset_mapping"]]
    assert "".join(pieces).replace(" ", "") == GERMAN[0].replace(" ", "")


def test_a_tokenizer_for_both_languages_alike(directory, tmp_path):
    tokenizer = OpusTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "target_tokenizer.json").unlink()
    one = OpusTokenizer.from_pretrained(tmp_path)
    assert one(text_target=GERMAN[0])["input_ids"] == one(GERMAN[0])["input_ids"] == tokenizer(GERMAN[0])["input_ids"]


def test_marian_s_files_need_the_package(directory, monkeypatch):
    monkeypatch.setattr(OpusTokenizer, "convert_marian", None)
    with pytest.raises(ValueError, match="converted by the package hf_attn; install and import it"):
        OpusTokenizer.from_pretrained(directory)
