"""Whether a model card says, in the YAML that the Hub reads, what it should; looked up offline."""

from typing import TYPE_CHECKING, Any

from hf_attn.hub_files import CARD, ModelFiles
from hf_attn.hub_info import FAMILIES, class_name, kind, scores

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# https://huggingface.co/docs/hub/repositories-licenses
NAMES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3
llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail
openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(NAMES.split())


def read_card(files: ModelFiles) -> "ModelCard":
    """README.md as the Hub reads it.

    Raises:
        ValueError: if there is none, or its YAML is wrong.
    """
    if CARD not in files.sizes:
        raise ValueError(f"{files.name} has no {CARD}; write one with `hf-attn card {files.name}`, and read it")
    from huggingface_hub import ModelCard

    before = files.metadata()
    try:
        card = ModelCard(files.read(CARD))
        kept = results(before) == results(ModelCard(str(card)).data.to_dict())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{files.name}/{CARD}: its YAML is not a model card's ({error}); mend it") from error
    if not kept:
        raise ValueError(
            f"{files.name}/{CARD}: its model-index does not survive reading; give one model with its results"
        )
    return card


def results(metadata: dict[str, Any]) -> tuple[set[str], list[str]]:
    """The names of the models and the scores of a model-index, in one order: the Hub's library joins data sets."""
    return {model["name"] for model in metadata.get("model-index") or []}, sorted(map(str, scores(metadata)))


def card_problems(files: ModelFiles) -> list[str]:
    """What is missing in README.md or does not fit the model, each with its remedy.

    Raises:
        ValueError: if there is none, or its YAML is wrong.
    """
    data, config = read_card(files).data.to_dict(), files.config()
    problems = []
    license = data.get("license")
    if license is None:
        problems.append("no license; without one nobody may use the model: add for example `license: apache-2.0`")
    elif str(license) not in LICENSES:  # a list is none either
        problems.append(
            f"license {license} is none that the Hub knows; write it as apache-2.0, or `other` and its name"
        )
    elif license == "other" and not data.get("license_name"):
        problems.append("license other has no license_name; add it")
    if data.get("library_name") != "transformers":
        problems.append(
            f"library_name is {data.get('library_name')}; pipelines load only `library_name: transformers`"
        )
    if config.get("model_type") in FAMILIES and "hf_attn" not in (data.get("tags") or []):
        problems.append("no tag hf_attn, by which models of this package are found; add it to `tags`")
    name = class_name(config)
    _, task = kind(name)
    if task is not None and data.get("pipeline_tag") != task:
        problems.append(f"pipeline_tag is {data.get('pipeline_tag')}, but {name} is for `pipeline_tag: {task}`")
    return problems
