"""What prepares a model's input and lies beside it: a tokenizer, an image processor."""

from typing import Any

from hf_attn.interchange.checkpoints import find_file


def companion(auto_class: Any, source: Any, files: tuple[str, ...], place: dict[str, Any]) -> Any | None:
    """What `auto_class` reads from a directory or a repository; None where none of these files is there.

    Args:
        place: PLACE's arguments of from_pretrained.

    Raises:
        ImportError: if another library is needed and not installed.
        ValueError: if one is there, and is damaged or not whole.
    """
    found = next((name for name in files if find_file(source, name, place) is not None), None)
    if found is None:
        return None
    try:
        return auto_class.from_pretrained(source, **place)
    except ImportError:
        raise
    except Exception as error:  # `tokenizers` has no class of its own for what it cannot read
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{source} has a {found}, but what it belongs to cannot be read ({reason}); copy it again with all files "
            "beside it, or remove these for the model alone"
        ) from error
