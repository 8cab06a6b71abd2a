"""What is exported is a MarianTokenizer to plain transformers, with our ids; what could not be one is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from hf_attn import train_tokenizer
from hf_attn.interchange.importing import import_checkpoint
from hf_attn.interchange.marian import export_transformers
from hf_attn.interchange.opus_tokenizer_export import export_marian_tokenizer
from hf_attn.tokenization_opus import OpusTokenizer
from tests.opus import ENGLISH, GERMAN, marian_tokenizer, save_marian, save_tokenizer_files, sentences
from tests.test_cli import run
from tests.test_interchange_opus_tokenizer import KINDS, ODD
from tests.tiny import tiny_translator

TEXTS = [*sentences(GERMAN, 40, seed=1), *sentences(ENGLISH, 40, seed=1), *ODD]
PLAIN = """
import json, sys, warnings
warnings.simplefilter("ignore")
from transformers import AutoTokenizer
texts = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = [tokenizer(texts)["input_ids"], tokenizer(text_target=texts)["input_ids"]]
decoded = tokenizer.batch_decode(ids[1], skip_special_tokens=True)
assert "hf_attn" not in sys.modules
print(json.dumps([type(tokenizer).__name__, *ids, decoded]))
"""


def plain_transformers(directory: Path, texts: list[str]) -> list:
    """The tokenizer's class, ids of sources, ids of targets and these decoded, in a process without this package."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    options = {"input": json.dumps(texts), "capture_output": True, "text": True, "cwd": directory, "env": environment}
    done = subprocess.run([sys.executable, "-c", PLAIN, str(directory)], **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of_ours(tokenizer, texts: list[str]) -> list:
    ids = tokenizer(texts)["input_ids"], tokenizer(text_target=texts)["input_ids"]
    return [*ids, tokenizer.batch_decode(ids[1], skip_special_tokens=True)]


def test_an_imported_model_goes_back_to_plain_transformers(tmp_path):
    save_marian(tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    out = tmp_path / "out"
    assert run("export", tmp_path / "ours", "--to", "transformers", "--output", out).exit_code == 0
    kind, *found = plain_transformers(out, TEXTS)
    assert kind == "MarianTokenizer"
    ours = OpusTokenizer.from_pretrained(tmp_path / "ours")
    assert found == of_ours(ours, TEXTS)
    unknown, tag = ours.unk_token_id, ours.convert_tokens_to_ids(">>deu<<")
    assert any(unknown in row for row in found[0]) and any(row[0] == tag for row in found[0])
    assert found[0] != found[1]  # each language is cut by its own pieces


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_it(kind, tmp_path):
    directory = save_tokenizer_files(tmp_path / "theirs", **KINDS[kind])
    ours = OpusTokenizer.from_pretrained(directory)
    ours(TEXTS, padding=True, truncation=True)  # which a tokenizer keeps
    ours.save_pretrained(tmp_path / "ours")
    again = OpusTokenizer.from_pretrained(tmp_path / "ours")
    (tmp_path / "out").mkdir()
    export_marian_tokenizer(again, tmp_path / "out")
    written, theirs = marian_tokenizer(tmp_path / "out"), marian_tokenizer(directory)
    assert written.get_vocab() == theirs.get_vocab()
    for name in ("source_lang", "target_lang", "separate_vocabs", "model_max_length", "supported_language_codes"):
        assert getattr(written, name) == getattr(theirs, name)
    for place in ("text", "text_target"):
        ids = written(**{place: TEXTS})["input_ids"]
        assert ids == theirs(**{place: TEXTS})["input_ids"] == again(**{place: TEXTS})["input_ids"]


def test_a_tokenizer_of_byte_pairs_stays_what_it_is_and_that_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("hf_attn.interchange.marian.logger.propagate", True)
    texts = ["a b c", "hello world", "größer"]
    tokenizer = train_tokenizer(texts * 3, 300)
    export_transformers(tiny_translator(position_layout="halves"), tmp_path / "out", tokenizer)
    assert "the tokenizer stays a PreTrainedTokenizerFast: AutoTokenizer reads it, and" in caplog.text
    _, *found = plain_transformers(tmp_path / "out", [*texts, "a</s> b", ""])
    assert found == of_ours(tokenizer, [*texts, "a</s> b", ""])


def test_what_no_marian_tokenizer_can_be_is_refused_and_nothing_is_written(tmp_path):
    directory = save_tokenizer_files(tmp_path / "theirs")
    model = tiny_translator(position_layout="halves")
    added = OpusTokenizer.from_pretrained(directory)
    added.add_tokens(["<term>"])
    other = OpusTokenizer.from_pretrained(directory)
    other._target = Tokenizer(models.BPE())
    changed = OpusTokenizer.from_pretrained(directory)
    changed._target.normalizer = changed._source.normalizer
    for tokenizer, message in (
        (added, "the tokenizer has <term> beside its vocabulary, which a MarianTokenizer would cut another way; imp"),
        (other, "the tokenizer is of type 'BPE', a MarianTokenizer's is 'Unigram'; import the model again, or exp"),
        (changed, "the tokenizer has another normalizer than one that was made of a MarianTokenizer; import the"),
    ):
        with pytest.raises(ValueError, match=message):
            export_transformers(model, tmp_path / "out", tokenizer)
        assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
