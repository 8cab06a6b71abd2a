"""The cards in model_cards/ are what the Hub would take, and all that they show is there."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.loopback_cards import card_faults

CARDS = Path(__file__).parent.parent / "model_cards"
NAMES = sorted(path.parent.name for path in CARDS.glob("*/README.md"))
TASKS = {"translation": "translator", "image-classification": "vit", "object-detection": "detr"}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_complete(name):
    text = (CARDS / name / "README.md").read_text(encoding="utf-8")
    assert card_faults(text) == []
    card = ModelCard(text)
    assert card.data.library_name == "transformers" and "hf_attn" in card.data.tags
    assert card.data.model_name == name and card.data.eval_results
    own, carried = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    for snippet in (own, carried):
        compile(snippet, name, "exec")
        assert f'pipeline("{card.data.pipeline_tag}", model="{name}"' in snippet
    assert "import hf_attn\n" in own and "trust_remote_code=True" in carried
    for heading in ("Scores", "Data", "Architecture", "Training", "Limits"):
        assert f"\n## {heading}\n" in text
    assert "Licence of the data: " in text and re.search(r"CPU threads?|NVIDIA", text)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert "learning_curve.png" in pictures
    assert {path.name for path in (CARDS / name).iterdir()} == {"README.md", *pictures}


def test_there_is_a_card_for_each_task_and_the_list_names_all():
    tasks = {TASKS[ModelCard.load(CARDS / name / "README.md").data.pipeline_tag] for name in NAMES}
    assert tasks == {"translator", "vit", "detr"}
    listed = set(re.findall(r"\]\((\w+)/README\.md\)", (CARDS / "README.md").read_text(encoding="utf-8")))
    assert listed == set(NAMES)
