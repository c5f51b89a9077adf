"""Whether a scan is plausibly a chest scan at all: doubts in words, for a reader, before any diagnosis.

The networks answer for whatever they are shown: a hand, a holiday picture, an abdomen. So each scan is looked at first,
by one small network a modality on `serving.plausibility_features`. It flags and never refuses: it is wrong at times,
and `docs/plausibility.json` says how often. `train.plausibility` fits it and writes its figures beside the
coefficients.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from serving.errors import RepositoryError
from serving.labels import MODALITIES, Modality
from serving.plausibility_features import FEATURES, features
from serving.scans import Scan

COEFFICIENTS: Final = Path(__file__).with_name("plausibility.npz")

DoubtKind = Literal["not_chest", "no_lung", "other_modality", "turned"]
"""`no_lung` is nothing unusual in a slice of a volume; the others are."""

CLASSES: Final = ("chest", "not_chest", "no_lung")
LIMIT: Final = 4.0
"""Standardised features are cut at this: one that is far outside must not outvote all others."""

_NAMES: Final[Mapping[Modality, str]] = {"ct": "chest CT slice", "xray": "chest X-ray"}
_READ_AS: Final[Mapping[Modality, str]] = {"ct": "a CT slice", "xray": "an X-ray"}
# By how much a turned or inverted copy must be like a chest scan before it is said to be one.
_SURELY: Final = 1.0


@dataclass(frozen=True)
class Doubt:
    """One reason not to trust what is said of a scan.

    Attributes:
        kind: For programs.
        words: A sentence for a reader.
    """

    kind: DoubtKind
    words: str


@dataclass(frozen=True)
class Verdict:
    """What was found of one scan.

    Attributes:
        margin: How far it is on the side of chest scans of its modality, in logits; below 0 it is doubted.
        doubts: Empty when it is plausible.
    """

    margin: float
    doubts: tuple[Doubt, ...]

    @property
    def is_plausible(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.doubts

    @property
    def words(self) -> tuple[str, ...]:
        """The sentences of its doubts."""
        return tuple(doubt.words for doubt in self.doubts)


@dataclass(frozen=True, eq=False)
class ChestDetector:
    """A network with one hidden layer of rectified units, for one modality.

    Its classes are ``chest`` (a chest scan that shows lung), ``not_chest`` and, for CT slices, ``no_lung``.

    Attributes:
        mean: Of each feature.
        scale: Spread of each feature.
        hidden: Weights of the hidden layer.
        hidden_bias: Its constants.
        out: Weights of the output, in the order of `CLASSES`.
        out_bias: Its constants. The threshold is in that of ``chest``.

    Raises:
        RepositoryError: If the shapes are not those of these features.
    """

    mean: Float32[np.ndarray, " features"]
    scale: Float32[np.ndarray, " features"]
    hidden: Float32[np.ndarray, "features units"]
    hidden_bias: Float32[np.ndarray, " units"]
    out: Float32[np.ndarray, "units classes"]
    out_bias: Float32[np.ndarray, " classes"]

    def __post_init__(self) -> None:
        units, classes = self.out.shape
        expected = [(FEATURES,), (FEATURES,), (FEATURES, units), (units,), (classes,)]
        got = [array.shape for array in (self.mean, self.scale, self.hidden, self.hidden_bias, self.out_bias)]
        if got != expected:
            raise RepositoryError(f"expected coefficients of shapes {expected}, got {got}")

    def logits(self, values: Float32[np.ndarray, "*scans features"]) -> Float32[np.ndarray, "*scans classes"]:
        """Of each class, for one scan or many."""
        standard = np.clip((values - self.mean) / self.scale, -LIMIT, LIMIT)
        logits: Float32[np.ndarray, "*scans classes"] = (
            np.maximum(standard @ self.hidden + self.hidden_bias, 0) @ self.out + self.out_bias
        )
        return logits

    def margin(self, values: Float32[np.ndarray, "*scans features"]) -> Float32[np.ndarray, "*scans"]:
        """How much likelier ``chest`` is than all else, as a logit: below 0 a scan is doubted."""
        logits = self.logits(values)
        margin: Float32[np.ndarray, "*scans"] = logits[..., 0] - np.logaddexp.reduce(logits[..., 1:], axis=-1)
        return margin

    def instead(self, values: Float32[np.ndarray, " features"]) -> str:
        """The likeliest class but ``chest``."""
        return CLASSES[1 + int(np.argmax(self.logits(values)[1:]))]


@dataclass(frozen=True, eq=False)
class Plausibility:
    """The detectors of both modalities.

    Attributes:
        detectors: By modality.
        provenance: What they were fitted on and measured at.
    """

    detectors: Mapping[Modality, ChestDetector]
    provenance: Mapping[str, Any]

    def examine(self, scan: Scan) -> Verdict:
        """Look at a scan. A few milliseconds; the same scan has the same verdict."""
        values = features(scan.pixels)
        margin = float(self.detectors[scan.modality].margin(values))
        return Verdict(margin, () if margin >= 0 else (self._doubt(scan, values),))

    def _doubt(self, scan: Scan, values: Float32[np.ndarray, " features"]) -> Doubt:
        name = _NAMES[scan.modality]
        other = next(modality for modality in MODALITIES if modality != scan.modality)
        if self.detectors[other].margin(values) >= 0:
            return Doubt(
                "other_modality", f"This looks like a {_NAMES[other]}, but was read as {_READ_AS[scan.modality]}."
            )
        if turned := self._turned(scan):
            return turned
        if self.detectors[scan.modality].instead(values) == "no_lung":
            return Doubt("no_lung", "No lung is seen in this slice: it may lie above or below the lungs.")
        return Doubt("not_chest", f"This does not look like a {name}.")

    def _turned(self, scan: Scan) -> Doubt | None:
        # Of both modalities: who turns an X-ray gets it guessed wrongly, too.
        margins = {
            (modality, how): float(detector.margin(values))
            for how, values in ((how, features(copy)) for how, copy in _copies(scan.pixels))
            for modality, detector in self.detectors.items()
        }
        modality, how = max(margins, key=lambda one: margins[one])
        if margins[modality, how] < _SURELY:
            return None
        misread = "" if modality == scan.modality else f", and was read as {_READ_AS[scan.modality]}"
        return Doubt("turned", f"This looks like a {_NAMES[modality]} that is {how}{misread}.")


def _copies(pixels: UInt8[np.ndarray, "h w"]) -> Iterator[tuple[str, UInt8[np.ndarray, "new_h new_w"]]]:
    """The scan turned back, with what would then have been done to it."""
    yield "turned by 90 degrees clockwise", np.ascontiguousarray(np.rot90(pixels))
    yield "turned by 90 degrees anticlockwise", np.ascontiguousarray(np.rot90(pixels, -1))
    yield "upside down", np.ascontiguousarray(pixels[::-1])
    yield "inverted, with air bright and bone dark", 255 - pixels


@cache
def published() -> Plausibility:
    """The published detectors.

    Raises:
        RepositoryError: If their file is missing or not one of ours.
    """
    try:
        with np.load(COEFFICIENTS) as stored:
            detectors = {
                modality: ChestDetector(*(stored[f"{modality}_{field.name}"] for field in fields(ChestDetector)))
                for modality in MODALITIES
            }
            return Plausibility(detectors, json.loads(str(stored["provenance"])))
    except (OSError, KeyError, ValueError) as error:
        raise RepositoryError(f"expected coefficients at {COEFFICIENTS.name}, got {error}") from error


def examine(scan: Scan) -> Verdict:
    """Whether a scan is plausibly a chest scan of its modality, by the published detectors.

    Raises:
        RepositoryError: If their file is missing or not one of ours.
    """
    return published().examine(scan)
