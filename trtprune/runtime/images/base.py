"""The contract of an image processor: from an image to what the vision graph and the pack step read.

Words: an image is what the user gives, a crop is one array the vision graph reads, a patch is a token of the tower, a
visual token is a row the decoder reads.  A plane is a rectangle of patches that belong together: all tiles of an image
are one plane, an overview of the image is a plane of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from trtprune.errors import InputError, shown
from trtprune.runtime.images.settings import SIZE_LIMIT, whole_number

if TYPE_CHECKING:
    from PIL import Image

    from trtprune.runtime.images.packed import PackedShape
    from trtprune.runtime.images.steps import Geometry

__all__ = ["NO_CROP", "CropShape", "Cropped", "Prepared", "Processor", "TokenPlan", "check_size"]

NO_CROP = -1
"""Crop, row, column or newline of a token that has none."""


@dataclass(frozen=True)
class CropShape:
    """The array the vision graph takes for one crop, and the features it gives.

    Attributes:
        height, width: Pixels.
        patch: (height, width) in pixels of what a feature stands for: a patch, or a square of patches that are put
            together.  Nothing sees the pixels right of the last whole one and below it.
        first_patch: The patch, row by row, that feature 0 stands for: 0; −1 if feature 0 is the CLS token; 1 if the
            first patch is dropped.
    """

    height: int
    width: int
    patch: tuple[int, int]
    first_patch: int = 0

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CropShape:
        """Reads what :meth:`settings` gives; raises KeyError or ValueError for anything else."""
        values = settings["crop"]
        if not isinstance(values, Mapping):
            raise ValueError("crop is no object")
        height, width = (whole_number(f"crop.{name}", values[name], 1, SIZE_LIMIT) for name in ("height", "width"))
        patch = values["patch"]
        if not isinstance(patch, list | tuple) or len(patch) != 2:
            raise ValueError(f"crop.patch {shown(patch)} is no size [height, width]")
        shape = cls(
            height,
            width,
            (whole_number("crop.patch", patch[0], 1, height), whole_number("crop.patch", patch[1], 1, width)),
            whole_number("crop.first_patch", values.get("first_patch", 0), -1, 1),
        )
        if shape.features < 1:
            raise ValueError("crop has no patch but the one that is dropped")
        return shape

    def settings(self) -> dict[str, Any]:
        """The shape as plain JSON data: the member ``crop`` of a processor's settings."""
        values = {"height": self.height, "width": self.width, "patch": list(self.patch)}
        return {"crop": values | {"first_patch": self.first_patch}}

    @property
    def rows(self) -> int:
        """Rows of patches."""
        return self.height // self.patch[0]

    @property
    def columns(self) -> int:
        """Columns of patches."""
        return self.width // self.patch[1]

    @property
    def patches(self) -> int:
        """Patches of a crop."""
        return self.rows * self.columns

    @property
    def features(self) -> int:
        """Features of a crop."""
        return self.patches - self.first_patch


@dataclass(frozen=True)
class TokenPlan:
    """All that follows from an image's size alone: its crops and its N visual tokens, before pruning.

    Arrays are read-only, since plans are shared.

    Attributes:
        crops: Arrays the vision graph reads for the image.
        grid: int32 [N, 3]: crop, row and column of each visual token.  Row and column count patches of the plane the
            crop lies on, padding included; of a plane that is shrunk they count the shrunk plane, and the crop is that
            of the tap with the largest weight, the first of equal ones.  (−1, −1, −1) for newline tokens; a CLS token
            has a crop, and −1 for row and column.  Positions of three axes are made of it (``runtime.positions``).
        newline: int32 [N]: place of the newline token that ends the token's line, −1 if none does; a newline token has
            its own place.
        pack_index: int32 [N, taps]: rows of the image's crop features, flattened to [crops · features, width] and
            followed by the learned rows; row ``crops · features`` is the newline.
        pack_weight: float32 [N, taps]: weight of each row; a visual token is the weighted sum of its rows.
        boxes: float32 [N, 4]: left, top, right and bottom of what the token shows, in pixels of the upright image;
            empty where that is padding alone, NaN for newline tokens.
        padding: bool [N]: the token shows padding alone.
        overview: The crop that shows the whole image at a glance, −1 if there is none.
        spans: Visual tokens of each span of the image in a prompt, in their order; together N.  Empty: one span.
        markers: The text that the prompt has in front of the first span, between two, and behind the last: one more
            than spans.  Empty: none.
    """

    crops: int
    grid: np.ndarray
    newline: np.ndarray
    pack_index: np.ndarray
    pack_weight: np.ndarray
    boxes: np.ndarray
    padding: np.ndarray
    overview: int
    spans: tuple[int, ...] = ()
    markers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", self.spans or (len(self.grid),))
        object.__setattr__(self, "markers", self.markers or ("",) * (len(self.spans) + 1))
        if sum(self.spans) != len(self.grid) or min(self.spans) < 0 or len(self.markers) != len(self.spans) + 1:
            raise ValueError(f"{len(self.grid)} visual tokens are not in spans of {self.spans} with their markers")
        for array in (self.grid, self.newline, self.pack_index, self.pack_weight, self.boxes, self.padding):
            array.setflags(write=False)

    @property
    def tokens(self) -> int:
        """Visual tokens, N."""
        return len(self.grid)

    @property
    def newlines(self) -> np.ndarray:
        """bool [N]: the newline tokens."""
        mask: np.ndarray = self.newline == np.arange(self.tokens)
        return mask

    @property
    def candidates(self) -> np.ndarray:
        """int64 [n], ascending: the visual tokens that a pruner chooses from, neither newline tokens nor padding."""
        return np.flatnonzero(~self.newlines & ~self.padding)

    def choices(self, newlines: str) -> np.ndarray:
        """:attr:`candidates`, and the newline tokens where the build's rule ``newlines`` is ``candidates``."""
        return np.flatnonzero(self.newlines | ~self.padding) if newlines == "candidates" else self.candidates

    def without_choice(self, keep: int, newlines: str = "drop") -> np.ndarray | None:
        """The kept tokens, int64 [n], ascending, of a budget that leaves nothing to choose; None if it does.

        All tokens of the image, newline tokens included, if the budget is no smaller than the rest; else every
        candidate, and padding in order up to the budget.

        Args:
            keep: The budget.
            newlines: The newline rule of the build.
        """
        real, padding = self.choices(newlines), np.flatnonzero(self.padding & ~self.newlines)
        if keep < len(real) or keep == len(real) == self.tokens:
            return None
        if keep >= len(real) + len(padding):
            return np.arange(self.tokens)
        return np.sort(np.concatenate((real, padding[: keep - len(real)])))


@dataclass(frozen=True)
class Prepared:
    """An image, ready for the vision graph.

    Attributes:
        pixel_values: float32 [crops, 3, H, W], or [patches, width] for a packed tower.
        plan: The image's visual tokens.
        arrays: The vision graph's other inputs by name; only of a packed tower, which reads one image a run.
    """

    pixel_values: np.ndarray
    plan: TokenPlan
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Cropped:
    """The common part of processors whose crops all have one size."""

    @property
    def vision_dims(self) -> dict[str, tuple[int, int]]:
        """None: all crops have one size."""
        return {}

    def arrays(self, plan: TokenPlan) -> dict[str, np.ndarray]:
        """None: a crop is all that the vision graph reads."""
        return {}


class Processor(Protocol):
    """One model's image processor.  Immutable and hashable."""

    name: ClassVar[str]
    """The processor's name in ``config.json``."""
    kinds: ClassVar[tuple[str, ...]]
    """``image_processor_type`` of the files it reads, without the suffixes Fast and Pil."""
    layouts: ClassVar[tuple[str, ...]]
    """Layouts of visual tokens it offers; the first one is the model's own."""
    taps: ClassVar[int]
    """Columns of ``pack_index`` and ``pack_weight``."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], where: str) -> Processor:
        """Reads :meth:`settings`, or the content of ``preprocessor_config.json`` beside ``crop``, ``layout`` and
        :meth:`model_settings`.

        Args:
            settings: The values by name; where one is missing, the class's default holds.  That of a packed tower
                has ``packed`` in place of ``crop``.
            where: File name for errors.

        Raises:
            EngineDirError: for a setting that is none, or settings that do not lead to the crop's size.
        """

    @classmethod
    def model_settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Members of the processor's settings that come from the model's own ``config.json``.

        Raises:
            ValueError: for a value that is none.
        """

    def settings(self) -> dict[str, Any]:
        """Plain JSON data from which :meth:`from_settings` makes an equal processor."""

    @property
    def shape(self) -> CropShape | PackedShape:
        """The shape of one crop in the vision graph's input, or of a patch for a packed tower."""

    @property
    def has_newlines(self) -> bool:
        """Whether some images have newline tokens."""

    @property
    def fixed_tokens(self) -> bool:
        """Whether the pruner chooses from the same number of visual tokens for every image."""

    @property
    def tokens_range(self) -> tuple[int, int]:
        """Bounds of N: no image has fewer or more visual tokens.  The upper one is reached."""

    @property
    def crops_range(self) -> tuple[int, int]:
        """Bounds of an image's crops, both reached."""

    @property
    def most_newlines(self) -> int:
        """Upper bound of an image's newline tokens."""

    @property
    def vision_dims(self) -> dict[str, tuple[int, int]]:
        """Bounds of the run-time dimensions of a packed tower's inputs, by name; visual tokens are not among them."""

    def arrays(self, plan: TokenPlan) -> dict[str, np.ndarray]:
        """The inputs of a packed tower beside the pixels, by name, for an image with these visual tokens."""

    def plan(self, height: int, width: int, images: int = 1) -> TokenPlan:
        """The visual tokens of an image.

        Args:
            height, width: Pixels of the upright image.
            images: Images of the prompt it stands in; some processors make one crop of each where there are several.

        Raises:
            InputError: for an image this processor makes nothing of.
        """

    def prepare(self, image: Image.Image, images: int = 1) -> Prepared:
        """The arrays and the visual tokens of an upright RGB image; arguments and errors as :meth:`plan`."""

    def geometry(self, height: int, width: int) -> Geometry | None:
        """The place of the crop in an image; None where an image is several crops, or of any size."""

    def pixels_taken(self, width: int, height: int, images: int = 1) -> int:
        """Pixels of the largest picture on the way from an image to its arrays, all arrays together counted as one."""


def check_size(height: int, width: int) -> None:
    """Raises InputError for an image without a pixel."""
    if height < 1 or width < 1:
        raise InputError(f"an image of {width} × {height} is empty", hint="a picture has at least one pixel")
