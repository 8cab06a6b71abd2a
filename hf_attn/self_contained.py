"""A model is saved with the code that reads it, and is read from safetensors alone."""

import os
from collections.abc import Callable
from typing import Any, ClassVar


class SelfContained:
    """For a `PreTrainedModel`, before it among the bases.

    Where the package is not installed, `trust_remote_code=True` lets transformers run the code that lies beside the
    weights. Which code that is, the package fills in below when it registers its models; a class that was itself read
    from a repository has nothing here, and its configuration keeps what stands in the repository.
    """

    _auto_class: ClassVar[str | None]
    auto_map: ClassVar[dict[str, str]] = {}  # automatic class → module.Class
    custom_pipelines: ClassVar[dict[str, dict[str, Any]]] = {}  # task → what config.json says of it
    # Makes a model of another library's checkpoint, or None of one of our own; only the package itself has it
    load_foreign: ClassVar[Callable[..., Any] | None] = None
    config: Any

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """transformers' own, after noting the classes that read the model; it copies their files."""
        if self._auto_class is not None and self.auto_map:
            self.config.auto_map = dict(self.auto_map)
            if self.custom_pipelines:
                self.config.custom_pipelines = {task: dict(said) for task, said in self.custom_pipelines.items()}
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' own, for checkpoints of other libraries too, which become a model of this class.

        Pickled weights are refused unless asked for by `use_safetensors=False`.

        Raises:
            OSError: if there are no weights, or only pickled ones.
            ValueError: if it is a checkpoint of another library that this model cannot be.
        """
        if cls.load_foreign is not None and pretrained_model_name_or_path is not None and not args:
            made = cls.load_foreign(pretrained_model_name_or_path, use_safetensors=use_safetensors, **kwargs)
            if made is not None:
                return made
        safe = use_safetensors is not False
        try:
            return super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, *args, use_safetensors=safe, **kwargs
            )
        except OSError as error:
            if safe and "safetensors" in str(error):
                raise OSError(
                    f"{pretrained_model_name_or_path} has no weights as safetensors ({error}). If it has pickled "
                    "ones (.bin): they can run code when they are read and are refused; convert them by `hf-attn "
                    "convert`, which reads tensors only, or, for once, give use_safetensors=False"
                ) from error
            raise
