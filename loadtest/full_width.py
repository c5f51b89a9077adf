"""Two model repositories at the paper's width, with random weights: fp32 and int8, for `loadtest.side_by_side`.

What the paper times is DeepLab-v3+ on Xception-65 at full width; the shipped streams are a quarter as wide. How long a
network takes does not depend on what its weights say, within the limits of `loadtest.random_networks`. What the masks
show means nothing.

The four streams share all weights but the classifier's, of which a stream of two classes takes the first kernels:
convert and quantise once, publish four times. In memory they are four networks, as those of the shipped repository.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import keras
import numpy as np
import onnx

from loadtest import random_networks
from loadtest.cases import draw
from loadtest.random_networks import Images, check_alive, narrowed_model, narrowed_network, random_deeplab
from serving import pipeline, preprocessing
from serving.errors import RepositoryError
from serving.labels import Modality
from serving.pipeline import MANIFESTATION_STEP, PREPROCESS, RECOGNITION, SEGMENTATION, THRESHOLDS, Step
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, PROVENANCE_NAME, write_configs
from serving.repository_checks import label_order
from train import activation_maps, deeplab, export, gating, inception, manifestation_cnn, quantize, xception
from train.deeplab import DeepLabConfig, build_deeplab
from train.experiments import EXPERIMENTS
from train.inception import InceptionV3Config, build_inception_v3
from train.manifestation_cnn import ManifestationCnnConfig, build_manifestation_cnn
from train.parity import Tolerances, check_fp32, keras_answers, onnx_answers, open_session

FINGERPRINT_NAME: Final = "fingerprint.json"
PRECISIONS: Final = ("fp32", "int8")
GOLDEN_IMAGES: Final = 2
NOTE: Final = (
    "Weights are random and masks mean nothing. A deep network with random weights amplifies every rounding from layer "
    "to layer, so masks from bf16 and int8 differ widely from those from fp32, and between runtimes that round in "
    "different places; probabilities do not. The trained networks are the ones to judge agreement by."
)
"""What a report must say of these networks."""
# Untrained classifiers put many pixels near an edge between two classes.
_TOLERANCES: Final = Tolerances(fp32_mask=5e-3)
_SOURCES: Final = (
    activation_maps,
    deeplab,
    export,
    gating,
    inception,
    manifestation_cnn,
    quantize,
    xception,
    random_networks,
    preprocessing,
    pipeline,
)
_WIDEST: Final = SEGMENTATION[0]


def _config_of(run: str) -> Any:
    return EXPERIMENTS[run].model


@dataclass(frozen=True)
class FullWidthConfig:
    """What is built.

    Attributes:
        streams: Of stage 3; classes as `segment_all` has them.
        recognition: Of stage 1, as shipped.
        manifestations: Of stage 2, as shipped.
        seed: What all weights are drawn from.
        calibration_images: Phantoms of each modality that int8 is calibrated on.
    """

    streams: DeepLabConfig = field(default_factory=lambda: DeepLabConfig(n_classes=len(label_order(_WIDEST))))
    recognition: InceptionV3Config = field(default_factory=lambda: _config_of("recognition_annealed"))
    manifestations: ManifestationCnnConfig = field(default_factory=lambda: _config_of("manifestations_first"))
    seed: int = 20
    calibration_images: int = 8


@dataclass(frozen=True)
class FullWidth:
    """What was built.

    Attributes:
        folder: Of everything.
        config: What it was built from.
    """

    folder: Path
    config: FullWidthConfig

    @property
    def repositories(self) -> dict[str, Path]:
        """By precision, a complete model repository."""
        return {precision: self.folder / precision for precision in PRECISIONS}

    def keras_models(self) -> dict[str, keras.Model]:
        """By name, the models with the weights of the fp32 repository, each with memory of its own."""
        widest = build_deeplab(self.config.streams)
        models: dict[str, keras.Model] = {
            RECOGNITION.model: build_inception_v3(self.config.recognition),
            MANIFESTATION_STEP.model: build_manifestation_cnn(self.config.manifestations),
            _WIDEST.model: widest,
        }
        for name, model in models.items():
            model.load_weights(_weights(self.folder, name))
        return models | {step.model: narrowed_model(widest, _stream_config(self.config, step)) for step in _NARROWER}


_NARROWER: Final = SEGMENTATION[1:]


def build(folder: Path, config: FullWidthConfig | None = None) -> FullWidth:
    """Builds the repositories, or finds them built by the same code from the same configuration.

    Args:
        folder: Where to; replaced if it is of an older build. At full width it takes 1.3 GB.
        config: The paper's width by default.

    Returns:
        What is in the folder now.

    Raises:
        RepositoryError: If the folder holds anything else.
        ExportError: If a network says the same of different scans.
        ParityError: If a Keras model and its network disagree.
    """
    config = config or FullWidthConfig()
    fingerprint = _fingerprint(config)
    built = FullWidth(folder, config)
    if _read_fingerprint(folder) == fingerprint:
        return built
    if folder.exists() and any(folder.iterdir()) and not (folder / FINGERPRINT_NAME).exists():
        raise RepositoryError(f"expected an empty folder or an older build at {folder}, got one with other files")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".full-width-", dir=folder.parent) as work:
        unfinished = Path(work) / "new"
        _build(unfinished, config)
        (unfinished / FINGERPRINT_NAME).write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    return built


def _fingerprint(config: FullWidthConfig) -> dict[str, Any]:
    files = [Path(cast(str, module.__file__)) for module in _SOURCES]
    files.append(Path(__file__))
    document = {
        "config": dataclasses.asdict(config),
        "sources": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "packages": {name: version(name) for name in ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime")},
    }
    # As it will be read back: JSON has no tuples.
    return cast(dict[str, Any], json.loads(json.dumps(document)))


def _read_fingerprint(folder: Path) -> Any:
    try:
        return json.loads((folder / FINGERPRINT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _build(folder: Path, config: FullWidthConfig) -> None:
    keras.utils.set_random_seed(config.seed)
    for precision in PRECISIONS:
        write_configs(folder / precision)
        shutil.copytree(
            DEFAULT_REPOSITORY / PREPROCESS.model,
            folder / precision / PREPROCESS.model,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    (folder / "keras").mkdir()
    slices, mixed = _images("ct", config.calibration_images), _images("both", config.calibration_images)
    for step, model, images in (
        (RECOGNITION, build_inception_v3(config.recognition), mixed),
        (MANIFESTATION_STEP, build_manifestation_cnn(config.manifestations), slices),
    ):
        _publish(folder, step, _convert(folder, model, step, images))
    networks = _convert(folder, random_deeplab(config.streams, slices), _WIDEST, slices)
    _publish(folder, _WIDEST, networks)
    for step in _NARROWER:
        n_classes = _stream_config(config, step).n_classes
        _publish(folder, step, {name: narrowed_network(network, n_classes) for name, network in networks.items()})


def _convert(folder: Path, model: keras.Model, step: Step, images: Images) -> dict[str, onnx.ModelProto]:
    """Keeps a model's weights, and gives its network by precision. The last images are those it is looked at with."""
    model.save_weights(_weights(folder, step.model))
    golden = images[-GOLDEN_IMAGES:]
    network = export.to_onnx(model, step)
    answers = onnx_answers(open_session(network), golden)
    check_alive(answers, step)
    check_fp32(keras_answers(model, step, golden), answers, step, _TOLERANCES)
    return {"fp32": network, "int8": quantize.quantize(network, images)}


def _publish(folder: Path, step: Step, networks: Mapping[str, onnx.ModelProto]) -> None:
    provenance = {
        "model": step.model,
        "experiment": "random weights, for measuring time",
        "label_order": label_order(step),
    }
    for precision, network in networks.items():
        version_folder = folder / precision / step.model / "1"
        version_folder.mkdir(parents=True)
        onnx.save(gating.add_gate(activation_maps.with_activation(network, step), step), version_folder / ONNX_NAME)
        (version_folder / PROVENANCE_NAME).write_text(json.dumps(provenance) + "\n", encoding="utf-8")


def _stream_config(config: FullWidthConfig, step: Step) -> DeepLabConfig:
    return dataclasses.replace(config.streams, n_classes=len(label_order(step)))


def _weights(folder: Path, model: str) -> Path:
    return folder / "keras" / f"{model}.weights.h5"


def _images(modality: str, n: int) -> Images:
    """`n` preprocessed phantoms of a modality, or of both in turn."""
    drawn = []
    for seed in range(n):
        kind: Modality = "xray" if modality == "both" and seed % 2 == 1 else "ct"
        drawn.append(preprocessing.prepare(draw(kind, seed), kind, list(THRESHOLDS.values()))[0])
    return np.stack(drawn)
