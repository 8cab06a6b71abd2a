"""Translations that are read again: the numbers are those of generate(), and of the attention that models put out."""

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from hf_attn import generation_scoring
from hf_attn.generation_scoring import CrossAttention, read_again
from tests.tiny import tiny_translator

SOURCE = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 1, 1], [11, 12, 13, 2, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),
}


def test_log_probabilities_are_those_of_generation():
    model = tiny_translator()
    generated = model.generate(
        **SOURCE, do_sample=True, max_new_tokens=8, output_logits=True, return_dict_in_generate=True
    )
    expected = torch.stack(generated.logits, dim=1).log_softmax(-1).gather(2, generated.sequences[:, 1:, None])[..., 0]
    ended = (generated.sequences[:, :-1] == 2).cumsum(1).bool()  # what follows </s> is padding
    with torch.no_grad():
        found = read_again(model, SOURCE, generated.sequences)["log_probs"]
    torch.testing.assert_close(found[~ended], expected[~ended])


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", ["predicts", "reads"])
def test_attention_is_the_mean_of_the_chosen_layers_and_heads(kernel, rows):
    model = tiny_translator(decoder_layers=3, attn_implementation=kernel)
    sequences = torch.tensor([[0, 20, 21, 22, 2], [0, 23, 24, 2, 1], [0, 25, 2, 1, 1]])
    with torch.no_grad():
        maps = model(**SOURCE, decoder_input_ids=sequences, output_attentions=True).cross_attentions
        chosen = read_again(model, SOURCE, sequences, CrossAttention(layers=[0, -1], heads=[1], rows=rows))["weights"]
        every = read_again(model, SOURCE, sequences, CrossAttention(rows=rows))["weights"]
    kept = slice(0, 4) if rows == "predicts" else slice(1, 5)
    torch.testing.assert_close(chosen, torch.stack([maps[0][:, 1], maps[2][:, 1]]).mean(0)[:, kept])
    torch.testing.assert_close(every, torch.stack(maps).mean((0, 2))[:, kept])
    torch.testing.assert_close(every.sum(-1), torch.ones(3, 4))


def test_several_translations_of_each_sentence_and_few_rows_at_once(monkeypatch):
    model = tiny_translator()
    sequences = torch.randint(4, 41, (6, 7))
    sequences[:, 0] = 0
    each = [read_again(model, {k: v[i // 2, None] for k, v in SOURCE.items()}, sequences[i, None], CrossAttention())
            for i in range(6)]  # fmt: skip
    monkeypatch.setattr(generation_scoring, "LOGITS_AT_ONCE", 4 * 7 * 41)
    together = read_again(model, SOURCE, sequences, CrossAttention())
    for name, tensor in together.items():
        torch.testing.assert_close(tensor, torch.cat([alone[name] for alone in each]))


def test_log_probabilities_of_other_models():
    shape = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = MarianConfig(vocab_size=41, d_model=16, **shape, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    model = MarianMTModel(config).eval()
    sequences = torch.tensor([[1, 20, 21, 2]])
    source = {name: tensor[:1] for name, tensor in SOURCE.items()}
    with torch.no_grad():
        loss = model(**source, labels=sequences[:, 1:]).loss
        torch.testing.assert_close(read_again(model, source, sequences)["log_probs"].mean(), -loss)
        with pytest.raises(ValueError, match="MarianMTModel shows no cross-attention"):
            read_again(model, source, sequences, CrossAttention())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"rows": "writes"}, "alignment rows 'writes' are unknown"),
        ({"layers": []}, "no alignment layers are chosen"),
        ({"heads": []}, "no alignment heads are chosen"),
        ({"layers": [7]}, "layer 7 is out of range"),
        ({"heads": [2]}, "head 2 is out of range"),
    ],
)
def test_wrong_choices_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        read_again(tiny_translator(), SOURCE, torch.tensor([[0, 2]] * 3), CrossAttention(**choice))
