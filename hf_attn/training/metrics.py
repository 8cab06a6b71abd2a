"""BLEU and chrF as `evaluate` metrics that need no network: sacrebleu's numbers, with the signatures that make them
comparable (Post 2018, "A Call for Clarity in Reporting BLEU Scores")."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import BLEU, CHRF
from transformers import EvalPrediction, PreTrainedTokenizerBase

from hf_attn.training.sampler import IGNORED_LABEL


class _CorpusScore(evaluate.Metric):
    """A corpus score of sacrebleu behind `compute(predictions=[...], references=[...])`."""

    description: str
    citation: str

    def __init__(self, **kwargs: Any):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description="predictions: a text for each sentence; references: a text or several for each.",
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            ],
        )

    def _build_data_dir(self) -> str:
        return ""  # everything stays in memory, so nothing is created in the user's cache

    def _infer_feature_from_batch(self, batch: dict[str, Sequence]) -> datasets.Features:
        predictions, references = len(batch["predictions"]), len(batch["references"])
        if predictions != references:
            raise ValueError(f"{predictions} predictions and {references} references; give one reference a prediction")
        if predictions == 0:
            raise ValueError("0 predictions; a corpus score needs at least one sentence")
        return super()._infer_feature_from_batch(batch)


class SacreBleuMetric(_CorpusScore):
    """BLEU of a corpus.

    `compute(predictions=[...], references=[...], **options)` gives `score` (0 to 100), `precisions` (of 1 to 4 words),
    `brevity_penalty`, and `signature`; the options are sacrebleu's (`tokenize="zh"`, `lowercase=True`, ...).

    Raises:
        ValueError: if there are no predictions, or not as many references.
    """

    description = "BLEU of a corpus, by sacrebleu"
    citation = "Papineni et al. 2002; Post 2018"

    def _compute(self, predictions: list[str], references: list, **options: Any) -> dict[str, Any]:
        metric = BLEU(**options)
        result = metric.corpus_score(predictions, _reference_streams(references))  # type: ignore[arg-type]
        return {
            "score": result.score,
            "precisions": result.precisions,
            "brevity_penalty": result.bp,
            "signature": str(metric.get_signature()),
        }


class ChrFMetric(_CorpusScore):
    """chrF of a corpus: F2 of character n-grams up to 6.

    `compute(predictions=[...], references=[...], **options)` gives `score` (0 to 100) and `signature`; the options are
    sacrebleu's (`word_order=2` for chrF++, ...).

    Raises:
        ValueError: if there are no predictions, or not as many references.
    """

    description = "chrF of a corpus, by sacrebleu"
    citation = "Popović 2015"

    def _compute(self, predictions: list[str], references: list, **options: Any) -> dict[str, Any]:
        metric = CHRF(**options)
        result = metric.corpus_score(predictions, _reference_streams(references))  # type: ignore[arg-type]
        return {"score": result.score, "signature": str(metric.get_signature())}


def score_translations(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """BLEU and chrF, 0 to 100, of translations against one reference each.

    Returns:
        `bleu`, `chrf`, `bleu_signature`, `chrf_signature`.
    """
    bleu = SacreBleuMetric().compute(predictions=predictions, references=references)
    chrf = ChrFMetric().compute(predictions=predictions, references=references)
    return {
        "bleu": bleu["score"],
        "chrf": chrf["score"],
        "bleu_signature": bleu["signature"],
        "chrf_signature": chrf["signature"],
    }


class TextScores:
    """`compute_metrics` of a trainer: decodes generated ids and labels, and gives `bleu` and `chrf`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        scores = score_translations(self.decode(prediction.predictions), self.decode(prediction.label_ids))
        return {"bleu": scores["bleu"], "chrf": scores["chrf"]}

    def decode(self, ids: Any) -> list[str]:
        """(sentences, length) ids, padded with -100 → texts without special tokens."""
        return self.tokenizer.batch_decode([row[row != IGNORED_LABEL] for row in ids], skip_special_tokens=True)


def _reference_streams(references: list) -> list[list[str | None]]:
    """One or several references for each sentence → sacrebleu's streams, each with one, or None, for each sentence."""
    if isinstance(references[0], str):
        return [references]
    return [list(stream) for stream in zip_longest(*references)]
