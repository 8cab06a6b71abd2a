"""Sentence pairs come out of every format alike, no line disappears silently, and no sentence is on both sides."""

import copy
import itertools
import json
import logging
from collections import Counter
from pathlib import Path

import datasets
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from transformers import PreTrainedTokenizerBase

from hf_attn.tokenization_translator import train_tokenizer
from hf_attn.training.data import PairReport, encode_pairs, load_pairs, token_lengths

PAIRS = [(f"Satz »{number}« ist da.", f'Sentence "{number}" is here.') for number in range(40)]


@pytest.fixture(scope="module", autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def write(path: Path, lines: list[str], encoding: str = "utf-8", end: str = "\n") -> Path:
    path.write_text("".join(line + end for line in lines), encoding=encoding, newline="")
    return path


def tsv(pairs: list[tuple[str, str]] = PAIRS) -> list[str]:
    return ["\t".join(pair) for pair in pairs]


def jsonl(source: str, target: str) -> list[str]:
    return [json.dumps({source: pair[0], target: pair[1]}) for pair in PAIRS]


def parallel(prefix: Path, pairs: list[tuple[str, str]] = PAIRS) -> Path:
    write(prefix.with_name(prefix.name + ".de"), [german for german, _ in pairs])
    write(prefix.with_name(prefix.name + ".en"), [english for _, english in pairs])
    return prefix


def columns(source: str, target: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({source: [pair[0] for pair in PAIRS], target: [pair[1] for pair in PAIRS]})


def translations() -> datasets.Dataset:
    features = datasets.Features({"id": datasets.Value("int32"), "translation": datasets.Translation(["en", "de"])})
    rows = {"id": list(range(len(PAIRS))), "translation": [{"de": german, "en": english} for german, english in PAIRS]}
    return datasets.Dataset.from_dict(rows, features=features)


def saved(dataset: datasets.Dataset | datasets.DatasetDict, path: Path) -> Path:
    dataset.save_to_disk(path)
    return path


def parquet_directory(path: Path) -> Path:
    path.mkdir()
    translations().to_parquet(path / "train.parquet")
    return path


def directory_with_one_file(path: Path) -> Path:
    path.mkdir()
    write(path / "README.md", ["text"])
    write(path / "all.tsv", tsv())
    return path


FORMATS = {
    "tsv without header": lambda path: write(path / "pairs.tsv", tsv()),
    "tsv with languages": lambda path: write(path / "pairs.tsv", ["de\ten", *tsv()]),
    "tsv with source and target": lambda path: write(path / "pairs.tsv", ["source\ttarget", *tsv()]),
    "tsv with more columns in another order": lambda path: write(
        path / "pairs.tsv", ["group\ten\tde", *(f"page\t{english}\t{german}" for german, english in PAIRS)]
    ),
    "tsv with byte order mark": lambda path: write(path / "pairs.tsv", ["de\ten", *tsv()], encoding="utf-8-sig"),
    "tsv with carriage returns": lambda path: write(path / "pairs.tsv", tsv(), end="\r\n"),
    "json with languages": lambda path: write(path / "pairs.jsonl", jsonl("de", "en")),
    "json with source and target": lambda path: write(path / "pairs.jsonl", jsonl("source", "target")),
    "json with translation": lambda path: write(
        path / "pairs.jsonl", [json.dumps({"translation": json.loads(line)}) for line in jsonl("de", "en")]
    ),
    "parallel files": lambda path: parallel(path / "corpus"),
    "parallel files with a dot in the name": lambda path: parallel(path / "corpus.v2"),
    "directory with one file": lambda path: directory_with_one_file(path / "data"),
    "saved dataset with languages": lambda path: saved(columns("de", "en"), path / "data"),
    "saved dataset with source and target": lambda path: saved(columns("source", "target"), path / "data"),
    "saved dataset with translation": lambda path: saved(translations(), path / "data"),
    "saved splits": lambda path: saved(datasets.DatasetDict({"all": translations()}), path / "data"),
    "directory for load_dataset": lambda path: parquet_directory(path / "data"),
}


def rows(split: datasets.Dataset) -> list[tuple[str, str]]:
    return list(zip(split["source"], split["target"], strict=True))


def all_rows(splits: datasets.DatasetDict) -> list[tuple[str, str]]:
    return list(itertools.chain.from_iterable(map(rows, splits.values())))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_splits(name: str, tmp_path: Path) -> None:
    splits, report = load_pairs(FORMATS[name](tmp_path), "de", "en", validation_size=3, test_size=2)
    expected, _ = load_pairs(write(tmp_path / "expected.tsv", tsv()), "de", "en", validation_size=3, test_size=2)
    assert {split: rows(splits[split]) for split in splits} == {split: rows(expected[split]) for split in expected}
    assert report.pairs == {"train": 35, "validation": 3, "test": 2}
    assert sorted(all_rows(splits)) == sorted(PAIRS)
    assert not report.dropped


def test_the_other_direction_swaps_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", ["de\ten", *tsv()])
    forth, _ = load_pairs(path, "de", "en")
    back, _ = load_pairs(path, "en", "de")
    assert [pair[::-1] for pair in all_rows(back)] == all_rows(forth)


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parallel", "saved"])
def test_a_directory_has_its_own_splits(kind: str, tmp_path: Path) -> None:
    parts = {"train": PAIRS[:30], "dev": PAIRS[30:35], "test": PAIRS[35:]}
    for name, pairs in parts.items():
        if kind == "tsv":
            write(tmp_path / f"{name}.tsv", tsv(pairs))
        elif kind == "jsonl":
            write(tmp_path / f"{name}.jsonl", [json.dumps({"de": german, "en": english}) for german, english in pairs])
        elif kind == "parallel":
            parallel(tmp_path / name, pairs)
    if kind == "saved":
        tables = {name: [{"de": german, "en": english} for german, english in parts[name]] for name in parts}
        datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in tables.items()}).save_to_disk(tmp_path)
    splits, report = load_pairs(tmp_path, "de", "en")
    assert [rows(splits[name]) for name in ("train", "validation", "test")] == list(parts.values())
    assert report.notes == []


def test_a_missing_test_set_is_cut_from_training_and_said(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", tsv(PAIRS[:30]))
    write(tmp_path / "validation.tsv", tsv(PAIRS[30:]))
    splits, report = load_pairs(tmp_path, "de", "en", test_size=2, seed=5)
    assert rows(splits["validation"]) == PAIRS[30:]
    assert len(splits["train"]) == 28
    assert report.notes == ["test: 2 pairs cut from the training data with seed 5"]


TEXT = st.text(st.characters(blacklist_characters="\t\n\r", blacklist_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=3, unique=True))
def test_any_text_survives_a_file(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    path = write(tmp_path_factory.mktemp("pairs") / "pairs.tsv", ["de\ten", *tsv(pairs)])
    stripped = Counter((source.strip(), target.strip()) for source, target in pairs)
    if len({source for source, _ in stripped}) > 2:
        splits, report = load_pairs(path, "de", "en")
        assert Counter(all_rows(splits)) == stripped
        assert not report.dropped


@settings(max_examples=40)
@given(st.lists(st.integers(0, 20), min_size=10, max_size=80), st.integers(1, 9), st.integers(0, 3))
def test_identical_sources_are_on_one_side(
    tmp_path_factory: pytest.TempPathFactory, sources: list[int], size: int, seed: int
) -> None:
    pairs = [(f"Quelle {source}", f"target {number}") for number, source in enumerate(sources)]
    path = write(tmp_path_factory.mktemp("pairs") / "pairs.tsv", tsv(pairs))
    if len(set(sources)) < 3:
        with pytest.raises(ValueError, match="too few to train with"):
            load_pairs(path, "de", "en")
        return
    options = {"validation_size": size, "test_size": size, "seed": seed}
    splits, _ = load_pairs(path, "de", "en", **options)
    train, validation, test = (set(splits[name]["source"]) for name in ("train", "validation", "test"))
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test
    assert sorted(all_rows(splits)) == sorted(pairs)
    again, _ = load_pairs(path, "de", "en", **options)
    assert {name: rows(again[name]) for name in again} == {name: rows(splits[name]) for name in splits}


def test_bad_lines_are_counted_with_their_places(tmp_path: Path) -> None:
    lines = ["de\ten", *tsv(), "nur eine Spalte", "\tno source", "kein Ziel\t ", "", "a\tb\tc", "d\te\tf"]
    path = write(tmp_path / "pairs.tsv", lines)
    splits, report = load_pairs(path, "de", "en", max_bad_share=0.2)
    assert sum(map(len, splits.values())) == len(PAIRS)
    assert report.dropped == {
        "1 columns instead of 2": 1,
        "source is empty": 1,
        "target is empty": 1,
        "empty line": 1,
        "3 columns instead of 2": 2,
    }
    assert report.first_dropped["3 columns instead of 2"] == [f"{path}:46", f"{path}:47"]
    assert f"dropped 2 x 3 columns instead of 2 ({path}:46, {path}:47)" in str(report)
    assert f"{path}: de-en pairs: 32 train, 4 validation, 4 test" in str(report)


def test_bad_json_lines_are_counted(tmp_path: Path) -> None:
    bad = ["{", "[1]", "", '{"de": "ohne Ziel"}', '{"de": 3, "en": "number"}', '{"de": "halb \\ud800", "en": "half"}']
    _, report = load_pairs(write(tmp_path / "p.jsonl", jsonl("de", "en") + bad), "de", "en", max_bad_share=0.2)
    assert report.dropped == {
        "not JSON": 1,
        "not a JSON object": 1,
        "empty line": 1,
        "target is missing": 1,
        "source is not text": 1,
        "source is not valid Unicode": 1,
    }


def test_a_report_names_only_the_first_places(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", tsv() + ["x"] * 4)
    _, report = load_pairs(path, "de", "en")
    assert f"4 x 1 columns instead of 2, and no header line naming them ({path}:41, {path}:42, {path}:43, ...)" in str(
        report
    )


def test_too_many_bad_lines_are_an_error_with_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", tsv() + ["x"] * 5)
    with pytest.raises(ValueError, match=r"5 of 45 lines are bad, more than 10%: 5 x 1 columns .*pairs.tsv:41"):
        load_pairs(path, "de", "en")


def test_three_columns_without_header_are_a_one_line_error(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", [f"{line}\tpage" for line in tsv()])
    with pytest.raises(ValueError, match=r"40 of 40 lines .* 3 columns instead of 2, and no header line") as error:
        load_pairs(path, "de", "en")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("encoding", "place", "byte"),
    [("latin1", "pairs.tsv:2", "0xfc at position 2"), ("utf-16", "pairs.tsv:1", "0xff at position 1")],
)
def test_another_encoding_is_an_error_with_line_and_byte(encoding: str, place: str, byte: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", ["ja\tyes", "für\tfor"], encoding=encoding)
    with pytest.raises(ValueError, match=rf"{place}: byte {byte} is not UTF-8; .*iconv -f {encoding} -t utf-8"):
        load_pairs(path, "de", "en")


@pytest.mark.parametrize(
    ("name", "lines", "missing", "there"),
    [
        ("p.tsv", ["de\ten\tgroup", "a\tb\tc"], "fr", "de, en, group"),
        ("p.tsv", ["cs\ten", "a\tb"], "de and fr", "cs, en"),
        ("p.jsonl", ['{"de": "a", "en": "b"}'], "fr", "de, en"),
        ("p.jsonl", ['{"translation": {"cs": "a", "en": "b"}}'], "de and fr", "cs, en"),
    ],
)
def test_a_language_that_is_not_there(name: str, lines: list[str], missing: str, there: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no {missing} in the data; there are {there}$"):
        load_pairs(write(tmp_path / name, lines), "de", "fr")


def test_a_language_that_is_not_in_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no fr in the data; there are de, en"):
        load_pairs(saved(translations(), tmp_path / "data"), "de", "fr")


def test_parallel_files_of_different_length(tmp_path: Path) -> None:
    write(tmp_path / "c.de", ["a"] * 7)
    write(tmp_path / "c.en", ["b"] * 5)
    with pytest.raises(ValueError, match=r"c.de has 7 lines, but .*c.en has 5; parallel files need as many each"):
        load_pairs(tmp_path / "c", "de", "en")
    with pytest.raises(ValueError, match=r"c.de has 7 lines, but .*c.en has 5"):
        load_pairs(tmp_path / "c", "en", "de")


def test_half_of_the_parallel_files(tmp_path: Path) -> None:
    write(tmp_path / "c.de", ["a"])
    with pytest.raises(FileNotFoundError, match=r"c.de is there, but its other half .*c.en is not"):
        load_pairs(tmp_path / "c", "de", "en")


def test_nothing_there_says_what_was_sought(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"corpus: no such file or directory, and no parallel files .*corpus.de"
    ):
        load_pairs(tmp_path / "corpus", "de", "en")
    with pytest.raises(FileNotFoundError, match="not read as a dataset from the Hub: Couldn't reach 'somebody/pairs'"):
        load_pairs("somebody/pairs", "de", "en")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train.tsv", "train.jsonl"], "train.tsv, .*train.jsonl all hold the same split; leave one"),
        (["one.tsv", "two.tsv"], "has no train.tsv.* but one.tsv, two.tsv"),
        (["test.tsv"], "has no train.tsv.* but test.tsv"),
    ],
)
def test_directories_that_do_not_say_what_to_read(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        write(tmp_path / name, tsv())
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path, "de", "en")


def test_a_directory_without_data(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", ["text"])
    with pytest.raises(FileNotFoundError, match="not read as a dataset: "):
        load_pairs(tmp_path, "de", "en")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_language": "de"}, "source and target language are both de"),
        ({"test_size": 0}, "test_size 0 must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", tsv())
    with pytest.raises(ValueError, match=message):
        load_pairs(path, **{"source_language": "de", "target_language": "en", **arguments})


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.csv: sentence pairs are read from .tsv and .jsonl files"):
        load_pairs(write(tmp_path / "pairs.csv", tsv()), "de", "en")


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", tsv())
    write(tmp_path / "test.tsv", [])
    with pytest.raises(ValueError, match="test has no pairs"):
        load_pairs(tmp_path, "de", "en")
    with pytest.raises(ValueError, match="0 different sources are too few"):
        load_pairs(write(tmp_path / "empty.tsv", []), "de", "en")


def test_sources_on_both_sides_of_given_splits_are_noted(tmp_path: Path) -> None:
    for name, pairs in {"train": PAIRS[:30], "validation": PAIRS[30:35], "test": PAIRS[25:40]}.items():
        write(tmp_path / f"{name}.tsv", tsv(pairs))
    _, report = load_pairs(tmp_path, "de", "en")
    assert report.notes == ["test: 5 of 15 sources also occur in train"]


def hub(monkeypatch: pytest.MonkeyPatch, configs: list[str]) -> list[tuple[str, str]]:
    """Put a dataset with these configurations in place of the Hub; returns the list of what will be asked of it."""
    asked = []

    def load_dataset(name: str, config: str) -> datasets.DatasetDict:
        asked.append((name, config))
        return datasets.DatasetDict({"train": translations(), "validation": translations(), "test": translations()})

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: configs)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_configuration_of_the_two_languages_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, ["cs-en", "de-en", "fr-en"])
    splits, _ = load_pairs("wmt/news", "en", "de")
    assert asked == [("wmt/news", "de-en")]
    assert rows(splits["train"]) == [pair[::-1] for pair in PAIRS]
    load_pairs("wmt/news", "en", "de", config_name="cs-en")
    assert asked[-1] == ("wmt/news", "cs-en")


def test_no_configuration_of_the_two_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ["cs-en", "fr-en"])
    with pytest.raises(ValueError, match="several configurations, choose one by config_name: cs-en, fr-en"):
        load_pairs("wmt/news", "de", "en")


# Token ids


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([text for pair in PAIRS for text in pair], vocab_size=300)


@pytest.fixture(scope="module")
def pairs() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"source": [p[0] for p in PAIRS], "target": [p[1] for p in PAIRS]})


def test_encoded_pairs_end_and_decode(pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_pairs(pairs, tokenizer, max_length=100)
    assert encoded.column_names == ["input_ids", "labels"]
    for row, pair in zip(encoded, pairs, strict=True):
        assert row["input_ids"][-1] == row["labels"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == pair["source"]
        assert tokenizer.decode(row["labels"], skip_special_tokens=True) == pair["target"]


def test_long_pairs_are_left_out_and_counted(
    pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"source": ["ja " * 60, "ja", "ja"], "target": ["yes", "yes " * 60, "yes"]}
    both = datasets.concatenate_datasets([pairs, datasets.Dataset.from_dict(long)])
    limit = max(map(max, token_lengths(encode_pairs(pairs, tokenizer, 100))))
    with caplog.at_level(logging.WARNING):
        encoded = encode_pairs(both, tokenizer, limit)
    assert len(encoded) == len(pairs) + 1
    assert max(map(max, token_lengths(encoded))) == limit
    assert f"2 of {len(both)} pairs have more than {limit} tokens and are left out" in caplog.text


def test_no_pair_is_short_enough(pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="none of 40 pairs has at most max_length 3 tokens"):
        encode_pairs(pairs, tokenizer, max_length=3)


def test_a_tokenizer_with_another_end_is_refused(pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<s>"
    with pytest.raises(ValueError, match="does not end a text with its end token '<s>'"):
        encode_pairs(pairs, other, max_length=100)


def test_lengths_are_those_of_the_rows(pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_pairs(pairs, tokenizer, max_length=100).select([7, 3, 30])
    source, target = token_lengths(encoded)
    assert source.tolist() == [len(ids) for ids in encoded["input_ids"]]
    assert target.tolist() == [len(ids) for ids in encoded["labels"]]


def test_an_empty_report_reads_well() -> None:
    report = PairReport("corpus", "de", "en", pairs={"train": 1200, "validation": 10, "test": 10})
    assert str(report) == "corpus: de-en pairs: 1,200 train, 10 validation, 10 test"
