"""The metrics are sacrebleu's numbers, work without network, and refuse what has no score."""

import numpy as np
import pytest
import sacrebleu
from transformers import EvalPrediction

from hf_attn.tokenization_translator import train_tokenizer
from hf_attn.training.metrics import ChrFMetric, SacreBleuMetric, TextScores, score_translations

PREDICTIONS = ["the cat sits on the mat", "two dogs run in a park today", "I am here"]
REFERENCES = ["the cat sat on the mat", "two dogs are running in the park today", "I am here ."]


def test_bleu_is_sacrebleus():
    result = SacreBleuMetric().compute(predictions=PREDICTIONS, references=REFERENCES)
    expected = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES])
    assert result["score"] == expected.score
    assert result["precisions"] == expected.precisions
    assert result["brevity_penalty"] == expected.bp
    assert result["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_chrf_is_sacrebleus():
    result = ChrFMetric().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["score"] == sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score
    assert result["signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_options_are_passed_on():
    shouted = [text.upper() for text in PREDICTIONS]
    same = SacreBleuMetric().compute(predictions=shouted, references=PREDICTIONS, lowercase=True)
    assert same["score"] == pytest.approx(100)
    plus = ChrFMetric().compute(predictions=PREDICTIONS, references=REFERENCES, word_order=2)
    assert plus["score"] == sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES], word_order=2).score


def test_several_references_a_sentence():
    references = [[reference, prediction] for reference, prediction in zip(REFERENCES, PREDICTIONS, strict=True)]
    assert SacreBleuMetric().compute(predictions=PREDICTIONS, references=references)["score"] == pytest.approx(100)


def test_added_one_by_one():
    metric = SacreBleuMetric()
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute()["score"] == sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score


@pytest.mark.parametrize("metric", [SacreBleuMetric, ChrFMetric])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [([], [], "at least one sentence"), (["a", "b"], ["a"], "2 predictions and 1 references")],
)
def test_what_has_no_score_is_refused(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric().compute(predictions=predictions, references=references)


def test_scores_name_their_signatures():
    scores = score_translations(PREDICTIONS, REFERENCES)
    assert set(scores) == {"bleu", "chrf", "bleu_signature", "chrf_signature"}


def test_scores_of_token_ids_are_those_of_the_texts():
    tokenizer = train_tokenizer(PREDICTIONS + REFERENCES, vocab_size=300)
    rows = [tokenizer(texts)["input_ids"] for texts in (PREDICTIONS, REFERENCES)]
    width = max(len(row) for side in rows for row in side)
    padded = [np.array([row + [-100] * (width - len(row)) for row in side]) for side in rows]
    scores = TextScores(tokenizer)(EvalPrediction(predictions=padded[0], label_ids=padded[1]))
    expected = score_translations(PREDICTIONS, REFERENCES)
    assert scores == {"bleu": expected["bleu"], "chrf": expected["chrf"]}
