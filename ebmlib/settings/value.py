"""One setting on one line: its default, where that comes from, its bounds, and what the presets change in it."""

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, ClassVar

PRESETS = ("smoke", "quick", "cpu", "long", "gpu", "paper")  # fastest first; "paper" is the defaults
CPU = PRESETS[:4]  # those that a CPU can run
Ints = tuple[int, ...]  # the type of a list of positive whole numbers


def value(
    default: Any, source: str = "", *, text: Any = None, code: Any = None, both: Any = None, low: float | None = None,
    above: float | None = None, below: float | None = None, most: str | None = None, allowed: tuple = (),
    check: Callable[[Any], None] | None = None, **presets: Any,
) -> Any:  # fmt: skip
    """A dataclass field that holds a setting, such as `value(5500, smoke=20, quick=600, low=1)`.

    default is the value at preset "paper". text and code are what the paper prints and what its released code has
    (both: the same in both); source says where, and what the setting is. Allowed are low <= value, above < value <
    below, at most the setting that `most` names, one of `allowed`, and what `check` does not refuse by a ValueError.
    The other keywords are presets with the value they take: smoke, quick, cpu, long, gpu. "small" stands for those of
    smoke, quick, cpu and long that are not named. Other presets take the default.
    """
    unknown = set(presets) - {*PRESETS[:-1], "small"}
    if unknown:
        raise TypeError(f"value() knows the presets {', '.join(PRESETS[:-1])} and small, not {', '.join(unknown)}")
    if "small" in presets:
        presets = dict.fromkeys(CPU, presets.pop("small")) | presets
    text, code = (both, both) if both is not None else (text, code)
    about = {"text": text, "code": code, "source": source, "presets": presets, "most": most, "check": check}
    return field(default=default, metadata=about | {"low": low, "above": above, "below": below, "allowed": allowed})


def even(width: int) -> None:
    """ValueError if a net with a time embedding cannot have this width."""
    if width % 2:
        raise ValueError(f"width = {width}: allowed is an even number, half of it sines and half cosines of the time")


class Settings:
    """Base of a notebook's settings, a frozen dataclass; the class variables say what `run.job.start` prepares."""

    notebook: ClassVar[str]  # its file name without .ipynb
    presets: ClassVar[tuple[str, ...]] = ("smoke", "quick", "gpu", "paper")
    kind: ClassVar[str] = ""  # "density" (a 2D target by name), "images" (a set by name), or "": the notebook's own
    data: ClassVar[str] = ""  # the default name of the data
    takes: ClassVar[tuple[str, ...]] = ("dataset", "resume", "checkpoint")  # the common parameters that have a use
    opens_run: ClassVar[bool] = True  # False: the notebook keeps no run, or opens it itself
    reads: ClassVar[str] = ""  # the notebook whose checkpoints it takes; "": its own
    published: ClassVar[Mapping[str, list[dict[str, Any]]]] = {}  # by data set: what the paper sets, per image size

    def implied(self, given: Mapping[str, Any]) -> "Settings":
        """These settings with what they imply where it is not `given`; ValueError if they contradict each other."""
        return self

    def true_name(self, dataset: str | None) -> str:
        """The name of the data where the parameter `dataset` is this, or None."""
        return dataset or self.data

    def images_needed(self, numbers: int) -> int:
        """The least number of training images of so many numbers each: a batch, and the 16 that KID takes."""
        return max(16, getattr(self, "batch", 0))

    def halvings(self) -> int:
        """How often the net halves an image of `size` pixels: by `stem` 2, each of `multipliers[1:]`, each scale."""
        own = len(getattr(self, "multipliers", (1,))) + getattr(self, "stem", 1) // 2
        return own + getattr(self, "scales", 1) - 2
