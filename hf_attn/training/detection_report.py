"""What `load_detections` has to say about the data it read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_attn.training.picture_data import PLACES_SHOWN, DataReport, counted

LAYOUT_NAMES = {"coco": "COCO", "yolo": "YOLO", "voc": "Pascal VOC", "datasets": "a dataset"}


@dataclass
class DetectionReport(DataReport):
    """What `load_detections` kept of the data, what it changed or dropped and why, and how it was split."""

    layout: str = ""  # "coco", "yolo", "voc" or "datasets"
    boxes: dict[str, int] = field(default_factory=dict)  # of each split, without crowds; `by_class` counts them too
    empty: dict[str, int] = field(default_factory=dict)  # pictures of each split without boxes
    remarked: Counter[str] = field(default_factory=Counter)  # what was met that is no reason to drop a picture
    first_remarked: dict[str, list[str]] = field(default_factory=dict)

    def remark(self, what: str, places: Sequence[str]) -> None:
        """Count things that are no reason to drop a picture."""
        if places:
            self.remarked[what] += len(places)
            shown = self.first_remarked.setdefault(what, [])
            shown += places[: PLACES_SHOWN - len(shown)]

    def __str__(self) -> str:
        kept = ", ".join(
            f"{count:,} {split} pictures with {self.boxes[split]:,} boxes" for split, count in self.pictures.items()
        )
        layout = " and ".join(LAYOUT_NAMES.get(name, name) for name in self.layout.split(" and "))
        number = len(self.class_names)
        lines = [f"{self.data}: {layout} with boxes of {number:,} class{'es' * (number != 1)}: {kept}"]
        lines += self.class_lines()
        if any(self.empty.values()):
            lines.append(
                "pictures without boxes: " + ", ".join(f"{count:,} {split}" for split, count in self.empty.items())
            )
        remarks = counted(self.remarked, self.first_remarked)
        return "\n".join([*lines, *self.notes, *remarks, *(f"dropped {fault}" for fault in self.faults())])
