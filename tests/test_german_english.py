"""The corpus script on a machine made up here: its mirror, packages and wheel hold sentences written for this test."""

import importlib
import io
import itertools
import json
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import typer
from hypothesis import given
from typer.testing import CliRunner

from hf_attn.training.data import load_pairs

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
downloads = importlib.import_module("downloads")
german_english = importlib.import_module("german_english")
parallel_text = importlib.import_module("parallel_text")
Pair = parallel_text.Pair

SUBJECTS = {"Der Hund": "The dog", "Die Katze": "The cat", "Das Kind": "The child", "Der Bär": "The bear"}
VERBS = {"sieht": "sees", "hört": "hears", "sucht": "seeks", "findet": "finds", "ruft": "calls"}
OBJECTS = {"den Fluss": "the river", "das Haus": "the house", "den Baum": "the tree", "die Straße": "the street"}
SENTENCES = [
    (f"{subject[0]} {verb[0]} {object_[0]}.", f"{subject[1]} {verb[1]} {object_[1]}.")
    for subject, verb, object_ in itertools.product(SUBJECTS.items(), VERBS.items(), OBJECTS.items())
]


def tar_of(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content.encode())
            tar.addfile(entry, io.BytesIO(content.encode()))
    return buffer.getvalue()


def help_pages(side: int) -> dict[str, str]:
    """Twenty pages of four sentences each, two of which share a paragraph."""
    language = ("de", "en-US")[side]
    pages = {}
    for number in range(20):
        first, second, third, fourth = (pair[side] for pair in SENTENCES[4 * number : 4 * number + 4])
        body = f'<p id="par_1">{first} {second}</p><p id="par_2">{third}</p><h2 id="hd_3">{fourth}</h2>'
        pages[f"./usr/share/libreoffice/help/{language}/text/swriter/page{number}.html"] = f"<body>{body}</body>"
    return pages


def descriptions(side: int) -> str:
    code = ("de", "en")[side]
    stanzas = []
    for number in range(20):
        first, second, third, fourth = (pair[side] for pair in SENTENCES[4 * number : 4 * number + 4])
        text = f"{first[:-1]}\n {second}\n .\n  * {third}\n  * {fourth}"
        stanzas.append(f"Package: tool{number}\nDescription-md5: {number:032x}\nDescription-{code}: {text}\n")
    return "\n".join(stanzas)


def dictionary() -> str:
    sentences = [
        f"Tier {{n}} | Tiere {{pl}} | {german} :: animal | animals | {english}" for german, english in SENTENCES
    ]
    return "\n".join(["# Version", *sentences, "Hund {m} [zool.] :: dog"])


class Machine:
    """Answers the commands that the script runs, from a mirror in memory, and counts the downloads."""

    def __init__(self, directory: Path):
        self.downloads: list[str] = []
        self.indices = {}
        for name, text in {"de": descriptions(0), "en": descriptions(1), "Packages": "Package: tool1\n"}.items():
            self.indices[name] = directory / name
            self.indices[name].write_text(text, encoding="utf-8")
        self.packages = {
            "libreoffice-help-de": tar_of(help_pages(0)),
            "libreoffice-help-en-us": tar_of(help_pages(1)),
            "trans-de-en": tar_of({"./usr/share/trans/de-en": dictionary()}),
        }

    def run(self, *command: str | Path, remedy: str, cwd: Path | None = None, capture: bool = False) -> bytes:
        words = [str(word) for word in command]
        if words[0] == "dpkg-deb":
            return Path(words[2]).read_bytes()
        if "indextargets" in words:
            language = words[-1].removeprefix("Language: ")
            return str(self.indices.get(language, self.indices["Packages"])).encode()
        if "pip" in words:
            self.downloads.append("wheel")
            self.write_wheel(Path(words[-2].removeprefix("--dest=")) / "homeassistant-1-py3-none-any.whl")
        elif "download" in words:
            assert cwd is not None
            for package in words[words.index("download") + 1 :]:
                self.downloads.append(package)
                (cwd / f"{package}_1%3a2_all.deb").write_bytes(self.packages[package])
        elif "update" in words:
            self.downloads.append("indices")
        return b""

    def write_wheel(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as wheel:
            for number in range(20):
                for side, code in enumerate(("de", "en")):
                    texts = {str(key): SENTENCES[4 * number + key][side] for key in range(4)}
                    content = json.dumps({"config": {"step": texts}, "only": {code: "x"}})
                    wheel.writestr(f"homeassistant/components/part{number}/translations/{code}.json", content)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    (tmp_path / "mirror").mkdir()
    machine = Machine(tmp_path / "mirror")
    monkeypatch.setattr(downloads, "run", machine.run)
    return machine


def prepare(tmp_path: Path, sources: list[str], **options) -> Counter:
    corpus = german_english.prepare_german_english(
        tmp_path / "corpus", sources, tmp_path / "cache", say=lambda text: None, **options
    )
    assert corpus.directory == tmp_path / "corpus"
    return corpus


def rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("source", ["lohelp", "ddtp", "ding", "homeassistant"])
def test_every_source_gives_its_sentences(source: str, machine: Machine, tmp_path: Path) -> None:
    prepare(tmp_path, [source])
    written = [row for split in parallel_text.SPLITS for row in rows(tmp_path / "corpus" / f"{split}.tsv")[1:]]
    found = {(german.rstrip("."), english.rstrip(".")) for german, english, _ in written}
    assert found == {(german[:-1], english[:-1]) for german, english in SENTENCES}
    assert all(group.startswith(f"{source}/") for _, _, group in written)


def test_what_is_written_is_what_load_pairs_reads(machine: Machine, tmp_path: Path) -> None:
    corpus = prepare(tmp_path, ["lohelp", "ding"], held_out=5)
    splits, report = load_pairs(tmp_path / "corpus", "de", "en")
    assert not report.dropped and not report.notes
    for name in parallel_text.SPLITS:
        header, *pairs = rows(tmp_path / "corpus" / f"{name}.tsv")
        assert header == ["de", "en", "group"]
        assert [pair[0] for pair in pairs] == splits[name]["source"]
        assert [pair[1] for pair in pairs] == splits[name]["target"]
        assert sum(corpus.pairs[name].values()) == len(pairs) > 0


def test_readme_states_sources_licences_and_counts(machine: Machine, tmp_path: Path) -> None:
    corpus = prepare(tmp_path, ["lohelp", "ding"])
    readme = (tmp_path / "corpus" / "README.md").read_text("utf-8")
    for text in ("LibreOffice help | MPL-2.0", "| ding | Ding", "GPL-2+", str(corpus)):
        assert text in readme
    assert "ddtp" not in readme


def test_the_same_downloads_give_the_same_files(machine: Machine, tmp_path: Path) -> None:
    prepare(tmp_path, ["lohelp", "ddtp", "ding"])
    first = {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    assert machine.downloads == ["indices", "libreoffice-help-de", "libreoffice-help-en-us", "trans-de-en"]
    prepare(tmp_path, ["lohelp", "ddtp", "ding"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()} == first
    assert set(first) == {"README.md", "train.tsv", "validation.tsv", "test.tsv"}
    assert len(machine.downloads) == 4, "downloaded again"


def test_long_sentences_are_left_out_on_demand(machine: Machine, tmp_path: Path) -> None:
    corpus = prepare(tmp_path, ["homeassistant"], max_words=4)
    assert corpus.dropped["longer than 4 words"] == len(SENTENCES)
    assert "longer than 4 words" in (tmp_path / "corpus" / "README.md").read_text("utf-8")


# Downloads


def test_an_interrupted_download_leaves_no_folder(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("network is gone")

    with pytest.raises(RuntimeError, match="network is gone"):
        downloads.fetch_once(tmp_path / "source", broken)
    assert not (tmp_path / "source").exists()
    downloads.fetch_once(tmp_path / "source", lambda folder: (folder / "whole").touch())
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["whole"]


def test_a_failing_command_is_one_line_with_a_remedy() -> None:
    script = "import sys; print('out'); sys.exit('first line\\nE: no route to the mirror')"
    with pytest.raises(RuntimeError) as error:
        downloads.run(sys.executable, "-c", script, remedy="check the network", capture=True)
    assert str(error.value) == f"{sys.executable} failed: E: no route to the mirror; check the network"
    with pytest.raises(RuntimeError, match="no-such-command is not installed; install it"):
        downloads.run("no-such-command", remedy="install it")
    assert downloads.run(sys.executable, "-c", "print('out')", remedy="", capture=True).split() == [b"out"]


def test_a_mirror_without_translations_is_an_error(machine: Machine, tmp_path: Path) -> None:
    machine.indices["de"].unlink()
    with pytest.raises(RuntimeError, match=r"brought no Translation-de index; .*--sources homeassistant"):
        prepare(tmp_path, ["ddtp"])
    assert not (tmp_path / "cache" / "ddtp").exists()


def test_a_spoilt_cache_says_what_to_delete(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "cache" / "ding").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"ding has 0 files trans-de-en_\*.deb instead of one; delete it"):
        prepare(tmp_path, ["ding"])


def test_an_interrupted_run_leaves_the_earlier_corpus(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, ["lohelp"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    write_text, written = Path.write_text, []

    def write_until_full(path: Path, *arguments, **options) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", write_until_full)
    with pytest.raises(OSError, match="No space left"):
        prepare(tmp_path, ["lohelp"], held_out=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()} == before


def test_the_sources_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(downloads.shutil, "which", lambda command: f"/usr/bin/{command}")
    assert german_english.choose_sources(said.append) == ["lohelp", "ddtp"]
    monkeypatch.setattr(downloads.shutil, "which", lambda command: None)
    assert german_english.choose_sources(said.append) == ["homeassistant"]
    assert said[0].startswith("apt found") and said[1].startswith("no apt")


@pytest.fixture
def script() -> Callable[..., tuple[int, str]]:
    app = typer.Typer()
    app.command()(german_english.main)

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.output

    return call


def test_the_command_line(machine: Machine, tmp_path: Path, script: Callable[..., tuple[int, str]]) -> None:
    options = ("--cache-dir", str(tmp_path / "cache"))
    code, output = script(str(tmp_path / "out"), "--sources", "ding, homeassistant", *options)
    assert code == 0, output
    assert f"written to {tmp_path / 'out'}" in output
    code, output = script(str(tmp_path / "out"), "--sources", "ding,tatoeba", *options)
    assert (code, output) == (2, "error: no such source: tatoeba; there are lohelp, ddtp, ding, homeassistant\n")
    (tmp_path / "file").touch()
    code, output = script(str(tmp_path / "file"), "--sources", "ding", *options)
    assert code == 1 and output.startswith("error: ") and output.count("\n") == 1


# Reading


def test_help_pages_lose_pictures_code_and_other_systems() -> None:
    page = """<body>
        <p id="par_1" class="paragraph">Press
        <span id="s" class="switchinline"><span class="MAC">Cmd</span><span>Ctrl</span></span>+F.</p>
        <p id="par_2" class="code">x</p>
        <h2 id="hd_3">Two<br>lines</h2>
        <p id="par_4">Click <img src="a.png"> now.</p>
        <p id="other_5">Menu</p></body>"""
    texts = german_english.paragraphs_by_id(page.encode())
    assert {key: parallel_text.clean(text) for key, text in texts.items()} == {
        "par_1": "Press Ctrl+F.",
        "hd_3": "Two lines",
    }


def test_descriptions_are_cut_in_paragraphs_and_items() -> None:
    text = "summary\n first line\n second line\n .\n Features:\n  * one\n    and more\n  - two\n Last line."
    blocks = [" ".join(block.split()) for block in german_english.description_blocks(text)]
    assert blocks == ["summary", "first line second line", "Features:", "one and more", "two", "Last line."]


def test_source_packages_of_an_index(tmp_path: Path) -> None:
    index = tmp_path / "Packages"
    index.write_text("Package: a\nVersion: 1\n\nPackage: b\nSource: c (1.2)\n\nPackage: d\nSource: e\n")
    assert list(german_english.packages_and_sources(index)) == [("b", "c"), ("d", "e")]


def test_versions_of_a_package_are_one_group(tmp_path: Path) -> None:
    stanzas = [f"Package: gcc-{v}-doc\nDescription-md5: {v}\nDescription-x: text {v}\n" for v in (12, 13)]
    for code in ("de", "en"):
        (tmp_path / f"{code}.txt").write_text("\n".join(stanzas))
    (tmp_path / "sources.tsv").write_text("gcc-12-doc\tgcc-12\n")
    groups = [pair.group for pair in german_english.read_package_descriptions(tmp_path)]
    assert groups == ["gcc", "gcc-doc"]


@pytest.mark.parametrize(
    ("entry", "variant"),
    [
        ("Er lacht. [ugs.]; Er lächelt.", "Er lacht."),
        ("Benimm dich!; Benehmen Sie sich!", "Benimm dich!"),
        ("Kommt {adv} (bald) wieder <weg> !", "Kommt wieder!"),
        ("Ja; nein.", "Ja; nein."),
    ],
)
def test_the_first_variant_of_an_entry(entry: str, variant: str) -> None:
    assert parallel_text.clean(german_english.first_variant(entry)) == variant


@pytest.mark.parametrize("text", ["Es regnet.", "„Warum?“", "3 Leute kamen!"])
def test_sentences(text: str) -> None:
    assert german_english.is_sentence(text)


@pytest.mark.parametrize("text", ["es regnet.", "Regen", "Er kommt/geht.", "Es liegt daran, dass … .", "A.; B."])
def test_no_sentences(text: str) -> None:
    assert not german_english.is_sentence(text)


# Sentences, cleaning and splits


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Es ist kalt. Ich gehe.", ["Es ist kalt.", "Ich gehe."]),
        ('Really? "Yes!" (Maybe.) Fine.', ["Really?", '"Yes!"', "(Maybe.)", "Fine."]),
        ("See e.g. Chapter 3. Then z. B. Dr. Who.", ["See e.g. Chapter 3. Then z. B. Dr. Who."]),
        ("Am 3. Mai bzw. Juni kommt er.", ["Am 3. Mai bzw. Juni kommt er."]),
        ("Choose Tools - Options ... Then press it.", ["Choose Tools - Options ... Then press it."]),
        ("www.example.org ist klein. und weiter", ["www.example.org ist klein. und weiter"]),
        ("", [""]),
    ],
)
def test_sentence_ends(text: str, sentences: list[str]) -> None:
    assert parallel_text.split_sentences(text) == sentences


@given(st.text(st.sampled_from('aB. !?3»“"(zr')))
def test_splitting_loses_nothing_but_spaces(text: str) -> None:
    text = " ".join(text.split())
    assert " ".join(parallel_text.split_sentences(text)) == text


def test_texts_are_split_only_when_the_sentences_match() -> None:
    two = Pair("Es ist kalt. Ich gehe.", "It is cold. I go.", "g")
    assert parallel_text.sentence_pairs(two) == [
        Pair("Es ist kalt.", "It is cold.", "g"),
        Pair("Ich gehe.", "I go.", "g"),
    ]
    more = Pair("Es ist kalt. Ich gehe.", "It is cold, I go.", "g")
    assert parallel_text.sentence_pairs(more) == [more]
    shifted = Pair(
        "Ja. Es ist heute wieder sehr kalt draußen.", "Yes, it is very cold outside again today. Really.", "g"
    )
    assert parallel_text.sentence_pairs(shifted) == [shifted]


@pytest.mark.parametrize(
    ("german", "english", "reason"),
    [
        ("Der Hund bellt.", "The dog barks.", None),
        ("Ein Fenster", "A window", None),
        ("", "The dog barks.", "one side empty"),
        ("Der Hund bellt sehr laut.", "The dog barks very loudly.", "longer than 4 words"),
        ("Der <b>Hund</b> bellt.", "The dog barks.", "markup, code, address or placeholder"),
        ("Hund {name} bellt.", "Dog {name} barks.", "markup, code, address or placeholder"),
        ("Siehe https://a.de", "See https://a.de", "markup, code, address or placeholder"),
        ("A1 1234 5678", "B1 1234 5678", "hardly any letters"),
        ("Activate!", "activate", "same text on both sides"),
        ("Der Hund bellt laut.", "It barks very loudly whenever somebody comes.", "lengths do not fit"),
        ("This is the dog", "This is a dog", "wrong language"),
        ("Er ist ein Hund", "Sie ist ein Hund", "wrong language"),
        ("Es sind 12.", "There are 13.", "other numbers"),
    ],
)
def test_faults(german: str, english: str, reason: str | None) -> None:
    assert parallel_text.fault(german, english, max_words=4 if reason and "longer" in reason else 0) == reason


def test_cleaning_counts_what_it_drops() -> None:
    dropped: Counter[str] = Counter()
    pairs = [
        Pair("Der\u00a0Hu\u00adnd bellt.", " The dog  barks.", "a"),
        Pair("Der Hund bellt!", "The dog barks", "b"),
        Pair("Bild", "Bild", "b"),
    ]
    assert parallel_text.clean_pairs(pairs, 0, dropped) == [Pair("Der Hund bellt.", "The dog barks.", "a")]
    assert dropped == {"repeated": 1, "same text on both sides": 1}


PAIRS = st.lists(
    st.builds(Pair, st.sampled_from("ABCDEFGHIJKLMNOP"), st.sampled_from("qrstuvwxyz"), st.sampled_from("0123456789")),
    max_size=200,
)


@given(PAIRS, st.integers(1, 30))
def test_splits_share_no_group_and_no_sentence(pairs: list, held_out: int) -> None:
    splits = parallel_text.split_by_group(pairs, held_out)
    assert sorted(itertools.chain.from_iterable(splits.values())) == sorted(pairs)
    dropped: Counter[str] = Counter()
    disjoint = parallel_text.disjoint_splits(splits, dropped)
    for one, other in itertools.combinations(parallel_text.SPLITS, 2):
        for field in ("german", "english", "group"):
            values = [{getattr(pair, field).lower() for pair in disjoint[name]} for name in (one, other)]
            assert not values[0] & values[1]
    assert sorted(disjoint["test"]) == sorted(splits["test"])
    assert sum(map(len, disjoint.values())) + dropped.total() == len(pairs)


def test_held_out_sizes_and_large_groups() -> None:
    pairs = [Pair(f"a{number}", f"b{number}", f"small {number // 5}") for number in range(2000)]
    pairs += [Pair(f"c{number}", f"d{number}", "large") for number in range(parallel_text.LARGEST_HELD_OUT_GROUP + 1)]
    splits = parallel_text.split_by_group(pairs, 100)
    assert len(splits["test"]) == len(splits["validation"]) == 100
    assert "large" not in {pair.group for name in ("test", "validation") for pair in splits[name]}
    assert parallel_text.split_by_group(list(reversed(pairs)), 100).keys() == splits.keys()
    again = parallel_text.split_by_group(list(reversed(pairs)), 100)
    assert {pair.group for pair in again["test"]} == {pair.group for pair in splits["test"]}
