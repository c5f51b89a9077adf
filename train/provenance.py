"""What a published version is and where it came from: the JSON beside each ``model.onnx``."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from serving.errors import ExportError
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES
from serving.pipeline import MANIFESTATION_STEP, MODEL_HW, RECOGNITION, segmentation_model
from train.targets import class_names

FILE_NAME: Final = "provenance.json"
PREPROCESSING: Final = "serving.preprocessing.preprocess"

Precision = Literal["fp32", "int8"]
Json = Any
"""What `json` reads and writes: str, int, float, bool, None, and lists and string-keyed mappings of these."""


def label_order(model: str) -> tuple[str, ...]:
    """What the last axis of a model's scores, or the class ids of its mask, mean.

    Raises:
        ExportError: If no published model has that name.
    """
    orders = {
        RECOGNITION.model: DIAGNOSIS_NAMES,
        MANIFESTATION_STEP.model: MANIFESTATION_NAMES,
        **{segmentation_model(stream): class_names(stream) for stream in STREAM_NAMES},
    }
    if model not in orders:
        raise ExportError(f"expected one of the models {', '.join(orders)}, got {model!r}")
    return orders[model]


def code_version() -> str:
    """``git describe`` of the checkout that this runs from, or the version of the installed package."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--tags"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or importlib.metadata.version("lungstreams")


def today() -> str:
    """The date in UTC, as in ``2020-04-15``."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


@dataclass(frozen=True)
class DataSource:
    """A public dataset that the model has seen.

    Attributes:
        name: Its name.
        licence: Its licence, as in ``CC BY 4.0``.
    """

    name: str
    licence: str

    def __post_init__(self) -> None:
        if not self.name or not self.licence:
            raise ExportError(f"expected a name and a licence of each data source, got {self!r}")


@dataclass(frozen=True)
class Provenance:
    """Where a version came from and how good it is. Valid once constructed.

    Attributes:
        model: The step's model, as in ``recognition``.
        experiment: Name of the run in `train.experiments`.
        data_fingerprint: SHA-256, in hex, over the rows of the manifests that it was trained and tested on.
        data_sources: The datasets, with their licences.
        metrics: Nested; says on which split, of how many patients or groups, each figure was measured.
        label_order: What the scores or class ids mean; from the labels of `serving` by default.
        input_hw: Height and width in pixels that the network was published for.
        preprocessing: What made the pixels.
        created: Date in UTC, ``YYYY-MM-DD``; today by default.
        code_version: The code that trained it; this checkout's by default.
        parameters: Number of weights of the Keras model; `train.export` fills it in.
        precision: Of the published graph; `train.export` fills it in.
        parity: What the checks of `train.export` measured; filled in there.
    """

    model: str
    experiment: str
    data_fingerprint: str
    data_sources: tuple[DataSource, ...]
    metrics: Mapping[str, Json]
    label_order: tuple[str, ...] = ()
    input_hw: tuple[int, int] = MODEL_HW
    preprocessing: str = PREPROCESSING
    created: str = field(default_factory=today)
    code_version: str = field(default_factory=code_version)
    parameters: int = 0
    precision: Precision = "fp32"
    parity: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.label_order:
            object.__setattr__(self, "label_order", label_order(self.model))
        _expect("label_order", self.label_order, label_order(self.model))
        _expect("input_hw", self.input_hw, MODEL_HW)
        for name in ("experiment", "preprocessing", "code_version", "data_sources", "metrics"):
            if not getattr(self, name):
                raise ExportError(f"expected the {name} of {self.model}, got nothing")
        if not re.fullmatch("[0-9a-f]{64}", self.data_fingerprint):
            raise ExportError(f"expected a SHA-256 in hex as data_fingerprint, got {self.data_fingerprint!r}")
        if self.precision not in get_args(Precision):
            raise ExportError(f"expected a precision of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.parameters < 0:
            raise ExportError(f"expected a number of parameters, got {self.parameters}")
        _check_date(self.created)
        _check_json(self.metrics, "metrics")
        _check_json(self.parity, "parity")

    def to_json(self) -> str:
        """As JSON, the keys in the order of the attributes, so that versions can be compared line by line."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read what `to_json` wrote.

        Raises:
            ExportError: If it is not that, or says something that is not valid.
        """
        try:
            fields = json.loads(text)
            sources = tuple(DataSource(**source) for source in fields.pop("data_sources"))
            for name in ("label_order", "input_hw"):
                fields[name] = tuple(fields[name])
            return cls(data_sources=sources, **fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ExportError(f"expected the JSON of a Provenance, got one that does not read: {error}") from error


def _expect(name: str, got: object, expected: object) -> None:
    if got != expected:
        raise ExportError(f"expected {name} to be {expected}, got {got}")


def _check_date(text: str) -> None:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        raise ExportError(f"expected a date like 2020-04-15, got {text!r}") from None


def _check_json(value: Json, where: str) -> None:
    """Nested values that survive a round trip: a NaN is not JSON, and a numpy scalar would not come back."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ExportError(f"expected text as keys of {where}, got {key!r}")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ExportError(f"expected finite numbers, got {where} = {value}")
    elif value is not None and not isinstance(value, (str, bool, int)):
        raise ExportError(f"expected values that JSON has, got {where} of type {type(value).__name__}")
