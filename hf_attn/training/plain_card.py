"""A model card from what lies beside the weights, where the one that training writes is not there.

The cards of report.py and its siblings know the data of the run, which no file keeps.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_attn.hub_files import LocalFiles
from hf_attn.hub_info import FAMILIES, describe
from hf_attn.training import detr_report, report, vit_report
from hf_attn.training.settings import SETTINGS_FILE

TEMPLATE = Path(__file__).with_name("plain_card.jinja")
EVAL_RESULTS = {
    "attn_translator": report.eval_results,
    "attn_vit": vit_report.eval_results,
    "attn_detr": detr_report.eval_results,
}
# Said elsewhere in the card; the last two may be paths, whose place on this disk is nobody's business.
NOT_SHOWN = {"source_language", "target_language", "license", "model_config", "base_model"}
NOT_SHOWN |= {"backbone_model"}


def plain_card(
    files: LocalFiles, license: str | None = None, name: str | None = None, made_of: str | None = None
) -> ModelCard:
    """The card of a model, from its configuration and the headers of its weights, and from training_settings.json and
    metrics.json where a training left them.

    Args:
        license: an SPDX identifier as the Hub writes it; by default that of the training, if it had one.
        name: of the model; by default that of its directory.
        made_of: the model on the Hub that has these weights in the format of another library.

    Raises:
        ValueError: if there is no model, or one of these files is damaged.
    """
    facts = describe(files)
    settings = _json(files, SETTINGS_FILE).get("settings", {})
    metrics = _json(files, "metrics.json")
    results = _results(facts["model_type"], settings, metrics)
    license = license or settings.get("license")
    name, ours = name or files.directory.absolute().name, facts["model_type"] in FAMILIES
    languages = [settings[side] for side in ("source_language", "target_language") if side in settings]
    card_data = ModelCardData(
        language=languages or None,
        license=license,
        library_name=facts["library"],
        pipeline_tag=facts["task"],
        tags=["hf_attn", facts["task"]] if ours and facts["task"] else ["hf_attn"] if ours else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name,
        eval_results=results or None,
        base_model=made_of,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=name,
        made_of=made_of,
        ours=ours,
        kind=facts["kind"],
        family=facts["family"],
        class_name=facts["class"],
        task=facts["task"],
        parameters=f"{facts['parameters']:,}",
        results=results,
        shape={**facts["shape"], **({"classes": len(facts["classes"])} if facts["classes"] else {})},
        training=metrics.get("training"),
        settings={key: value for key, value in settings.items() if value is not None and key not in NOT_SHOWN},
        license=license,
    )


def _json(files: LocalFiles, path: str) -> dict[str, Any]:
    return files.json(path) if path in files.sizes else {}


def _results(model_type: str | None, settings: dict[str, Any], metrics: dict[str, Any]) -> list[EvalResult]:
    scores = {name: values for name, values in metrics.items() if isinstance(values, dict) and name != "training"}
    if not scores or model_type not in EVAL_RESULTS:
        return []
    return EVAL_RESULTS[model_type](scores, settings.get("data_name", "unknown"))
