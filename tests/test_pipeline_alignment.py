import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_attn.pipeline_alignment import WordAlignment, align_words, first_words, moses_format, words_of_tokens
from hf_attn.tokenization_translator import train_tokenizer

TOKENIZER = train_tokenizer(["Der alte Mann sitzt im Garten.", "The old man sits in the garden."] * 3, 300)


def tokens_of(text: str) -> list[int]:
    return TOKENIZER(text).input_ids


@pytest.mark.parametrize(
    "text", ["Der alte Mann", "The zebra's 1250 €!", "  two   spaces", "日本 😀 ok", "a\u00a0b\u2003c"]
)
def test_tokens_belong_to_the_words_that_they_spell(text):
    ids = tokens_of(text)
    words = words_of_tokens(TOKENIZER, ids)
    assert words[-1] == -1  # </s>
    for place, word in enumerate(text.split()):
        spelled = TOKENIZER.decode([token for token, of in zip(ids, words, strict=True) if of == place])
        assert spelled.split() == [word]


def test_attention_is_summed_over_what_is_read_and_averaged_over_what_reads():
    source, target = tokens_of("Zebra im Garten"), tokens_of("xylophone sits")
    source_words, target_words = words_of_tokens(TOKENIZER, source), words_of_tokens(TOKENIZER, target)
    weights = torch.rand(len(target), len(source)).softmax(dim=-1)
    expected = torch.zeros(2, 3)
    for j in range(2):
        rows = [row for row, word in enumerate(target_words) if word == j]
        for i in range(3):
            for row in rows:
                for column in [column for column, word in enumerate(source_words) if word == i]:
                    expected[j, i] += weights[row, column] / len(rows)
    alignment = align_words(TOKENIZER, source, target, weights)
    assert alignment.source_words == ["Zebra", "im", "Garten"]
    assert alignment.target_words == ["xylophone", "sits"]
    assert len(source) > 4 and len(target) > 3  # words of several tokens
    torch.testing.assert_close(alignment.weights, expected)
    torch.testing.assert_close(alignment.weights.sum(-1) < 1, torch.tensor([True, True]))  # the rest went to </s>


def test_each_target_word_is_linked_with_the_source_word_it_looks_at_most():
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])
    assert WordAlignment(["a", "b", "c"], ["x", "y"], weights).links() == [(1, 0), (0, 1)]
    assert WordAlignment([], ["x"], torch.zeros(1, 0)).links() == []
    assert WordAlignment(["a"], [], torch.zeros(0, 1)).links() == []


def test_moses_format_is_source_dash_target():
    assert moses_format({(1, 0), (0, 1), (0, 0)}) == "0-0 0-1 1-0"
    assert moses_format([]) == ""


@given(st.text(st.sampled_from("ab \n"), max_size=30), st.data())
def test_first_words_are_the_words_at_their_characters(text, data):
    places = [place for place, character in enumerate(text) if not character.isspace()]
    starts = sorted(data.draw(st.lists(st.sampled_from(places), unique=True))) if places else []
    word_at, word = {}, -1
    for place, character in enumerate(text):
        if not character.isspace():
            word += place == 0 or text[place - 1].isspace()
            word_at[place] = word
    assert first_words(text, starts) == [word_at[start] for start in starts]
