"""`pipeline("translation")`, which transformers 5 took away: texts of any length in, translations out.

text → sentences → token ids → batches of like lengths → `generate()` → sentences → text, with its white space
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSeq2SeqLM, Pipeline, pipelines
from transformers.utils.logging import tqdm

from .generation_scoring import CrossAttention, read_again
from .pipeline_alignment import WordAlignment, align_words, first_words, moses_format
from .pipeline_batches import Batching, items, pad_right, token_batches
from .pipeline_segmentation import Segment, join_segments, split_long, split_sentences
from .pipeline_workers import can_fork, side_by_side
from .tokenization_translator import check_text, save_tokenizer

MAX_NEW_TOKENS = 512  # for models that say nothing of their own: transformers' 20 would cut most sentences
LONG_INPUT = 20_000  # characters from which progress is shown


class Hypothesis(NamedTuple):
    """One translation of one sentence; what was not asked for is left out."""

    text: str
    score: float | None = None
    token_scores: Sequence[tuple[str, float]] = ()
    links: Sequence[tuple[int, int]] = ()  # (source word, target word), counted in the sentence


class TranslationPipeline(Pipeline):
    """Translates texts with any encoder-decoder of transformers.

        translate = pipeline("translation", model="directory or name")
        translate("Ein Satz. Noch einer.")           # [{"translation_text": "..."}]
        translate(["Ein Satz.", "Noch einer."])      # [{"translation_text": "..."}, {"translation_text": "..."}]
        translate(text, n_best=3, num_beams=4)       # three dicts, each with its "score"
        translate(line for line in file)             # a generator of such lists, in constant memory

    A text is split after its sentences and at line breaks, the sentences are translated, and the white space between
    them stays as it was. A sentence longer than the model can read is split further, after a clause or between words:
    nothing is cut off. White space, and sentences without any letter or digit (emoji, rules), are copied.

    Sentences are sorted by length into batches; translations come back in the order of the texts, and are those that
    each text would get alone. One string gives a list of its translations. A list or tuple gives a list, with one dict
    a text, or, where several translations are asked for, one list a text. Any other iterable (a generator, a column of
    a data set) gives a generator of lists, which reads `look_ahead` sentences at a time.

    All of these may be given here or with the call:

    max_tokens_per_batch: source tokens in a batch, padding included; every beam reads them again. 4096 by default.
    batch_size: sentences in a batch at most; no bound by default.
    look_ahead: sentences that are read, sorted and translated together. 2048 by default.
    workers: processes that translate batches side by side, each with its share of torch's threads: on a CPU, where
        small products gain little from a second thread, the fastest for hundreds of sentences and more. They share the
        memory of the model. 1 by default.
    progress: whether to show a progress bar on stderr; by default where long input meets a terminal.
    max_source_length: tokens of a sentence, `</s>` included, above which it is split; by default what the tokenizer
        and the model's positions allow.
    n_best, num_return_sequences: (the same) how many translations of each text to return, best first: the k-th joins
        the k-th of each sentence.
    return_scores: give "score", a log-probability normalised by length: in our beam search what it ranks by, elsewhere
        the mean over the tokens; for a text, the mean over its sentences. Given wherever `n_best` is.
    return_token_scores: give "token_scores", a list of (token, log-probability under the model), sentence after
        sentence, each with its `</s>`.
    return_alignments: give "alignment" in Moses format, "0-0 1-2": each word of the translation (what white space
        separates, counted in the whole text) beside the source word that it paid most attention to. For translators
        of this package, under any attention kernel.
    alignment_layers, alignment_heads: whose cross-attention to average; all by default.
    alignment_rows: "predicts" takes the attention of the step that predicts a token (the default), "reads" that of
        the next step, which reads it.

    Everything else goes to `generate()`; what it is not told stands in the model's `generation_config`.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = True
    _non_generation_params = ("num_return_sequences",)

    def __init__(self, *args, **kwargs):
        self._batching = Batching().take(kwargs)
        super().__init__(*args, **kwargs)
        if self.tokenizer is None:
            raise ValueError("translation needs a tokenizer; give one with tokenizer=")
        if not (self.model.config.is_encoder_decoder and self.model.can_generate()):
            raise ValueError(
                f"{type(self.model).__name__} is no encoder-decoder that generates; translation needs one"
            )
        if getattr(self.model.generation_config, "max_new_tokens_over_source", None) is None:
            self._generation_defaults["max_new_tokens"] = min(MAX_NEW_TOKENS, self._longest_source() - 1)

    def _sanitize_parameters(
        self,
        max_source_length: int | None = None,
        n_best: int | None = None,
        num_return_sequences: int | None = None,
        return_scores: bool | None = None,
        return_token_scores: bool | None = None,
        return_alignments: bool | None = None,
        alignment_layers: list[int] | None = None,
        alignment_heads: list[int] | None = None,
        alignment_rows: str | None = None,
        **generate_kwargs,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if n_best is not None and num_return_sequences not in (None, n_best):
            raise ValueError(f"n_best is {n_best} but num_return_sequences {num_return_sequences}; they mean the same")
        for name in {"target_prefixes", "required_phrases"} & generate_kwargs.keys():
            raise ValueError(f"{name} belong to sentences, which a pipeline sorts and splits; give them to generate()")
        count = num_return_sequences if n_best is None else n_best
        wanted = _given(
            num_return_sequences=count,
            return_scores=True if return_scores is None and count is not None else return_scores,
            return_token_scores=return_token_scores,
            return_alignments=return_alignments,
        )
        alignment = _given(
            alignment_layers=alignment_layers, alignment_heads=alignment_heads, alignment_rows=alignment_rows
        )
        return _given(max_source_length=max_source_length), {**wanted, **alignment, **generate_kwargs}, wanted

    # --- many texts ------------------------------------------------------------------------------------------------

    def __call__(self, inputs: str | Iterable[str], **kwargs) -> list[dict] | list[list[dict]] | Iterator[list[dict]]:
        """Translate a text, a list of texts, or any iterable of texts; options and results as described above.

        Raises:
            ValueError: if a text is not a string or not valid Unicode, or an option is out of range.
        """
        batching = self._batching.take(kwargs)
        presets = (self._preprocess_params, self._forward_params, self._postprocess_params)
        stages = [{**preset, **now} for preset, now in zip(presets, self._sanitize_parameters(**kwargs), strict=True)]
        if isinstance(inputs, str):
            [result] = self._translate([inputs], batching, stages, characters=len(inputs))
            return result
        if isinstance(inputs, list | tuple):
            characters = sum(len(text) for text in inputs if isinstance(text, str))
            results = list(self._translate(inputs, batching, stages, characters))
            return [result[0] for result in results] if all(len(result) == 1 for result in results) else results
        return self._translate(items(inputs), batching, stages)

    def _translate(
        self, texts: Iterable[str], batching: Batching, stages: list[dict[str, Any]], characters: int | None = None
    ) -> Iterator[list[dict]]:
        preprocess_params, forward_params, postprocess_params = stages
        is_long = characters is None or characters >= LONG_INPUT
        show = batching.progress if batching.progress is not None else is_long and sys.stderr.isatty()
        with tqdm(total=characters, unit=" characters", unit_scale=True, disable=not show) as bar:
            for window in self._windows(texts, batching.look_ahead, preprocess_params):
                self._translate_window(window, batching, forward_params, bar)
                for prepared in window:
                    yield self.postprocess(prepared, **postprocess_params)

    def _windows(self, texts: Iterable[str], look_ahead: int, params: dict[str, Any]) -> Iterator[list[dict]]:
        """Prepared texts, about `look_ahead` sentences at a time."""
        window: list[dict] = []
        sentences = 0
        for place, text in enumerate(texts):
            check_text(text, f"text {place}")
            window.append(self.preprocess(text, **params))
            sentences += max(1, len(window[-1]["segments"]))
            if sentences >= look_ahead:
                yield window
                window, sentences = [], 0
        if window:
            yield window

    def _translate_window(self, window: list[dict], batching: Batching, forward_params: dict[str, Any], bar) -> None:
        """Fill in the hypotheses of all sentences that are not copied, sorted by length."""
        places = [(text, i) for text in window for i, copied in enumerate(text["hypotheses"]) if copied is None]
        lengths = [len(text["input_ids"][i]) for text, i in places]
        to_translate = sum(len(text["segments"][i].text) for text, i in places)
        bar.update(sum(text["characters"] for text in window) - to_translate)
        self._check_workers(batching.workers, forward_params)
        batches = token_batches(lengths, batching.max_tokens(sum(lengths)), batching.batch_size)
        sources = [[places[place][0]["input_ids"][places[place][1]] for place in batch] for batch in batches]
        with _evaluating(self.model):
            made = self._outputs(sources, batching.workers, forward_params)
            for batch, read, outputs in zip(batches, sources, made, strict=True):
                for place, hypotheses in zip(batch, self._hypotheses(outputs, read), strict=True):
                    text, i = places[place]
                    text["hypotheses"][i] = hypotheses
                    bar.update(len(text["segments"][i].text))

    def _outputs(
        self, sources: list[list[list[int]]], workers: int, forward_params: dict[str, Any]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """What `forward` makes of each batch, in their order."""

        def run(batch: list[list[int]]) -> dict[str, torch.Tensor]:
            return self.forward(pad_right(batch, self.tokenizer.pad_token_id), **forward_params)

        workers = min(workers, len(sources))
        return map(run, sources) if workers <= 1 else side_by_side(run, sources, workers)

    def _check_workers(self, workers: int, forward_params: dict[str, Any]) -> None:
        """Refuse several workers where they could not do what one does."""
        if workers == 1:
            return
        if self.device.type != "cpu" or not can_fork():
            raise ValueError(f"{workers} workers need a model on the CPU, and Linux; leave workers out")
        config = forward_params.get("generation_config") or self.model.generation_config
        if forward_params.get("do_sample", config.do_sample):
            raise ValueError(
                f"{workers} workers would all draw the same random numbers; leave workers out, or sampling"
            )

    # --- one text: the stages of every pipeline --------------------------------------------------------------------

    def preprocess(self, input_: str, max_source_length: int | None = None) -> dict[str, Any]:
        """A text → its sentences as `segments` with their `input_ids`; `hypotheses` is None for those to translate."""
        check_text(input_)
        limit = self._longest_source() if max_source_length is None else max_source_length
        lead, sentences = split_sentences(input_)
        segments, input_ids = [], []
        for segment, ids in zip(sentences, self._encode([sentence.text for sentence in sentences]), strict=True):
            parts = [segment]
            if len(ids) > limit and _has_words(segment.text):
                parts = split_long(segment, lambda part: len(self._encode([part])[0]) <= limit)
            segments += parts
            input_ids += [ids] if len(parts) == 1 else self._encode([part.text for part in parts])
        copies = [None if _has_words(segment.text) else [_copy(segment.text)] for segment in segments]
        return {
            "characters": len(input_),
            "lead": lead,
            "segments": segments,
            "input_ids": input_ids,
            "hypotheses": copies,
        }

    def forward(self, model_inputs: dict[str, torch.Tensor], **forward_params) -> dict[str, torch.Tensor]:
        """As in every pipeline, but without dropout even for a model in training."""
        with _evaluating(self.model):
            return super().forward(model_inputs, **forward_params)

    def _forward(
        self,
        input_tensors: dict[str, torch.Tensor],
        num_return_sequences: int | None = None,
        return_scores: bool = False,
        return_token_scores: bool = False,
        return_alignments: bool = False,
        alignment_layers: list[int] | None = None,
        alignment_heads: list[int] | None = None,
        alignment_rows: str = "predicts",
        **generate_kwargs,
    ) -> dict[str, torch.Tensor]:
        """A batch of sentences → `sequences`, (batch · translations, length), and what else is wanted of each."""
        own = _given(num_return_sequences=num_return_sequences, return_dict_in_generate=True)
        generated = self.model.generate(**input_tensors, **self._prepare_generate_kwargs(generate_kwargs, **own))
        outputs = {"sequences": generated.sequences}
        has_score = generated.get("sequences_scores") is not None
        if return_scores and has_score:
            outputs["scores"] = generated.sequences_scores
        del generated  # and its cache
        if return_alignments:
            attention = CrossAttention(alignment_layers, alignment_heads, alignment_rows)
            outputs |= read_again(self.model, input_tensors, outputs["sequences"], attention)
        elif return_token_scores or (return_scores and not has_score):
            outputs |= read_again(self.model, input_tensors, outputs["sequences"])
        return outputs

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        num_return_sequences: int = 1,
        return_scores: bool = False,
        return_token_scores: bool = False,
        return_alignments: bool = False,
    ) -> list[dict[str, Any]]:
        """A text whose sentences have hypotheses → its translations, best first."""
        lead, segments, hypotheses = (model_outputs[name] for name in ("lead", "segments", "hypotheses"))
        records = []
        for k in range(max([num_return_sequences, *map(len, hypotheses)])):
            chosen = [of_sentence[min(k, len(of_sentence) - 1)] for of_sentence in hypotheses]
            text, _ = join_segments(lead, segments, [hypothesis.text for hypothesis in chosen])
            record: dict[str, Any] = {"translation_text": text}
            if return_scores:
                scores = [hypothesis.score for hypothesis in chosen if hypothesis.score is not None]
                record["score"] = sum(scores) / len(scores) if scores else 0.0
            if return_token_scores:
                record["token_scores"] = [pair for hypothesis in chosen for pair in hypothesis.token_scores]
            if return_alignments:
                record["alignment"] = moses_format(_links(lead, segments, chosen))
            records.append(record)
        return records

    # --- one sentence ----------------------------------------------------------------------------------------------

    def align(
        self,
        source: str,
        target: str,
        layers: list[int] | None = None,
        heads: list[int] | None = None,
        rows: str = "predicts",
    ) -> WordAlignment:
        """How much attention each word of a target pays to each word of a source: any two sentences, read once.

        Args:
            source: a sentence.
            target: its translation, by this or any other translator.
            layers: decoder layers to average; by default all.
            heads: heads to average; by default all.
            rows: "predicts" or "reads", as `alignment_rows` of the pipeline.
        """
        check_text(source, "source")
        check_text(target, "target")
        [source_ids] = self._encode([source])
        target_ids = self.tokenizer(text_target=target, verbose=False)["input_ids"]
        sequences = torch.tensor([[self._decoder_start(), *target_ids]], device=self.device)
        inputs = self.ensure_tensor_on_device(**pad_right([source_ids], self.tokenizer.pad_token_id))
        with torch.no_grad(), _evaluating(self.model):
            outputs = read_again(self.model, inputs, sequences, CrossAttention(layers, heads, rows))
        return align_words(self.tokenizer, source_ids, target_ids, outputs["weights"][0].cpu())

    def _encode(self, sentences: list[str]) -> list[list[int]]:
        return self.tokenizer(sentences, verbose=False)["input_ids"] if sentences else []

    def _longest_source(self) -> int:
        """Tokens, `</s>` included, that the tokenizer and the model's table of positions (if it has one) allow."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        return min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)

    def _decoder_start(self) -> int:
        start = self.model.generation_config.decoder_start_token_id
        return self.model.config.decoder_start_token_id if start is None else start

    def _hypotheses(self, outputs: dict[str, torch.Tensor], sources: list[list[int]]) -> list[list[Hypothesis]]:
        """What `forward` made of a batch → the translations of each of its sentences, best first."""
        hypotheses: list[list[Hypothesis]] = [[] for _ in sources]
        translations = len(outputs["sequences"]) // len(sources)
        details = {name: list(tensor) for name, tensor in outputs.items() if name != "sequences"}
        for row, sequence in enumerate(outputs["sequences"].tolist()):
            ids = self._target_ids(sequence)
            if ids:  # a place of the n-best list that no hypothesis fills holds padding
                of_row = {name: rows[row] for name, rows in details.items()}
                sentence = row // translations
                hypotheses[sentence].append(self._hypothesis(ids, sources[sentence], **of_row))
        return hypotheses

    def _target_ids(self, sequence: list[int]) -> list[int]:
        """Without the start token, and without the padding behind the end."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        ids = sequence[1:]
        length = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
        while length and ids[length - 1] == self.tokenizer.pad_token_id:
            length -= 1
        return ids[:length]

    def _hypothesis(
        self,
        ids: list[int],
        source_ids: list[int],
        scores: torch.Tensor | None = None,
        log_probs: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> Hypothesis:
        hypothesis = Hypothesis(self.tokenizer.decode(ids, skip_special_tokens=True).strip())
        if log_probs is not None:
            of_tokens = log_probs[: len(ids)].tolist()
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            hypothesis = hypothesis._replace(
                score=sum(of_tokens) / len(ids), token_scores=list(zip(tokens, of_tokens, strict=True))
            )
        if scores is not None:
            hypothesis = hypothesis._replace(score=scores.item())
        if weights is not None:
            alignment = align_words(self.tokenizer, source_ids, ids, weights[: len(ids), : len(source_ids)])
            hypothesis = hypothesis._replace(links=alignment.links())
        return hypothesis

    # --- saving ----------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Model, tokenizer, and the code of both and of this pipeline, for those without the package."""
        super().save_pretrained(save_directory, **kwargs)
        save_tokenizer(self.tokenizer, save_directory)


def _has_words(sentence: str) -> bool:
    return any(character.isalnum() for character in sentence)


def _copy(sentence: str) -> Hypothesis:
    return Hypothesis(sentence, links=[(i, i) for i in range(len(sentence.split()))])


def _links(lead: str, segments: list[Segment], hypotheses: list[Hypothesis]) -> set[tuple[int, int]]:
    """The links of all sentences, their words counted in the whole source and the whole translation."""
    first_sources = first_words(*join_segments(lead, segments, [segment.text for segment in segments]))
    first_targets = first_words(*join_segments(lead, segments, [hypothesis.text for hypothesis in hypotheses]))
    places = zip(hypotheses, first_sources, first_targets, strict=True)
    return {(i + first_i, j + first_j) for hypothesis, first_i, first_j in places for i, j in hypothesis.links}


def _given(**options) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def register_translation_pipeline(auto_class: type = AutoModelForSeq2SeqLM) -> None:
    """Make `pipeline("translation")` mean `TranslationPipeline`, with models loaded by `auto_class`.

    transformers refuses the name since version 5, so it is taken off the list of what is refused.
    """
    pipelines.REMOVED_TASKS.pop("translation", None)
    registered = pipelines.PIPELINE_REGISTRY.supported_tasks.get("translation", {})
    if registered.get("impl") is not TranslationPipeline:
        pipelines.PIPELINE_REGISTRY.register_pipeline(
            "translation", pipeline_class=TranslationPipeline, pt_model=auto_class, type="text"
        )
