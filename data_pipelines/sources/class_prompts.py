"""Classes as prompts: a label becomes the sentence that asks for an image of it.

A class-conditional set is then captioned images like any other. MonoFormer reads ImageNet so: "Please generate an
image of X" (arXiv:2409.16280).
"""

from typing import Any

from pydantic import field_validator

from data_pipelines.sources.cells import BadRow
from transfusion.config import Config

LABEL = "{label}"


class ClassPrompt(Config):
    """How a label is worded."""

    template: str = "Please generate an image of {label}"
    """The prompt, with `{label}` where the name of the class goes."""

    names: tuple[str, ...] | dict[str, str] = ()
    """Names of the classes, in the order of their numbers or by label. Left out where labels are names already."""

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if LABEL not in template:
            raise ValueError(f"template must hold {LABEL}, where the class goes, got {template!r}")
        return template

    def of(self, label: Any, *, column: str) -> str | None:
        """The prompt of a label, a name or a number; None for no label.

        Raises:
            BadRow: `unknown_label`: it has no name.
        """
        if label is None or (isinstance(label, str) and not label.strip()):
            return None
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise BadRow("unknown_label", f"{column!r} is a {type(label).__name__}")
        if self.names:
            name = self._known.get(str(label))
        else:
            name = label if isinstance(label, str) else None
        if name is None:
            raise BadRow(
                "unknown_label", f"{column!r} is {label!r}, which names has no name for"[:200]
            )
        return self.worded(name)

    def worded(self, name: str) -> str:
        """The prompt of the class of that name."""
        return self.template.replace(LABEL, name)

    @property
    def _known(self) -> dict[str, str]:
        if isinstance(self.names, dict):
            return self.names
        return {str(number): name for number, name in enumerate(self.names)}
