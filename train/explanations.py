"""What the published network's activation maps are worth, measured on real scans: ``python -m train.explanations``.

Writes ``docs/explanations.json``: how far maps of shuffled weights are from the network's own, layer by layer
(`train.sanity`), and which part of what speaks for the answer lies in the lungs, beside the part of the picture that
the lungs are. The second would be the first for a map that is the same all over: a share at or under it means that the
network looks elsewhere at least as much.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from jaxtyping import Bool, Float32

from serving.activation import evidence_inside, restore_map
from serving.labels import DIAGNOSIS_NAMES
from serving.lungs import lungs_of_grey
from serving.pipeline import MODEL_HW, RECOGNITION
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, versions
from train import data
from train.activation_maps import without_activation
from train.batches import in_three_channels
from train.data import Example
from train.provenance import code_version
from train.sanity import LAYERS, cascade, maps_of
from train.tensorrt_render import as_json
from train.ungating import ungated

FILE: Final = Path("docs") / "explanations.json"
DEPTHS: Final = (0, 1, 2, 5, 10, 20, 40, LAYERS)
SEEDS: Final = (0, 1, 2)
SHUFFLED_ON: Final = 8
"""Scans of each modality; the shuffled networks are many."""
SCANS: Final = 150
"""Of each modality, for where the evidence lies."""
FRAME: Final = 1 / 8
"""Width of the border of an X-ray, as a part of its side."""
LEAST_LUNG: Final = 0.05
"""Of a slice: with less, the finder has found none."""
_SEED: Final = 7


def main(
    root: Path | None = None,
    repository: Path = DEFAULT_REPOSITORY,
    out: Path = FILE,
    *,
    n_scans: int = SCANS,
    depths: Sequence[int] = DEPTHS,
    seeds: Sequence[int] = SEEDS,
) -> dict[str, Any]:
    """Measure the published version and write down what was found.

    Args:
        root: Of the scans; None for the default.
        repository: The model repository.
        out: The file.
        n_scans: Of each modality, at most.
        depths: How many layers are shuffled, one after the other.
        seeds: Of the shuffling.

    Returns:
        What was written.

    Raises:
        DatasetError: If data is missing.
    """
    root = data.data_root(root)
    version = versions(repository / RECOGNITION.model)[-1]
    network = ungated(onnx.load(repository / RECOGNITION.model / str(version) / ONNX_NAME))
    scans = {kind: sample([e for e in data.recognition(root) if _counts(e, kind)], n_scans) for kind in ("ct", "xray")}
    few = [example for examples in scans.values() for example in examples[:SHUFFLED_ON]]
    figures = {
        "recognition_version": version,
        "code_version": code_version(),
        "shuffled_weights": _shuffled(network, few, root, depths, seeds),
        "ct": _in_the_lungs(network, scans["ct"], root),
        "xray": _in_the_frame(network, scans["xray"], root),
    }
    out.write_text(as_json(figures), encoding="utf-8")
    return figures


def _counts(example: Example, modality: str) -> bool:
    return example.split == "test" and example.modality == modality


def sample(examples: Sequence[Example], n: int) -> list[Example]:
    """At most `n` of them, always the same."""
    order = np.random.default_rng(_SEED).permutation(len(examples))[:n]
    return [examples[i] for i in order]


def _shuffled(
    network: onnx.ModelProto, examples: Sequence[Example], root: Path, depths: Sequence[int], seeds: Sequence[int]
) -> dict[str, Any]:
    images = in_three_channels(np.stack([data.load_image(example, root) for example in examples]))
    found = {}
    for depth, correlations in cascade(network, images, depths, seeds):
        found[str(depth)] = {
            "mean": _rounded(np.nanmean(correlations)),
            "mean_abs": _rounded(np.nanmean(np.abs(correlations))),
            "constant_maps": int(np.isnan(correlations).sum()),
        }
    return {"n_scans": len(images), "seeds": len(seeds), "spearman_by_layers_from_the_top": found}


def _maps_of_answers(
    network: onnx.ModelProto, examples: Sequence[Example], root: Path
) -> tuple[list[Any], list[Any], list[str]]:
    """Prepared scans, the map of each one's likeliest diagnosis on them, and which that is."""
    images = [data.load_image(example, root) for example in examples]
    cells = maps_of(without_activation(network), in_three_channels(np.stack(images)))
    likeliest = cells.mean(axis=(2, 3)).argmax(axis=1)
    maps = [restore_map(each[i], MODEL_HW) for each, i in zip(cells, likeliest, strict=True)]
    return images, maps, [DIAGNOSIS_NAMES[i] for i in likeliest]


def _in_the_lungs(network: onnx.ModelProto, examples: Sequence[Example], root: Path) -> dict[str, Any]:
    images, maps, answers = _maps_of_answers(network, examples, root)
    regions = [lungs_of_grey(image) > 0 for image in images]
    found = [i for i, region in enumerate(regions) if region.mean() >= LEAST_LUNG]
    return {
        "region": "lungs, as serving.lungs.lungs_of_grey finds them",
        "n_scans": len(examples),
        "lungs_not_found": len(examples) - len(found),
        **_by_answer([maps[i] for i in found], [regions[i] for i in found], [answers[i] for i in found]),
    }


def _in_the_frame(network: onnx.ModelProto, examples: Sequence[Example], root: Path) -> dict[str, Any]:
    _, maps, answers = _maps_of_answers(network, examples, root)
    frame = np.ones(MODEL_HW, bool)
    inner = [slice(round(size * FRAME), size - round(size * FRAME)) for size in frame.shape]
    frame[inner[0], inner[1]] = False
    return {
        "region": "the outermost eighth of the picture on each side: no lungs are found in X-rays",
        "n_scans": len(examples),
        **_by_answer(maps, [frame] * len(maps), answers),
    }


def _by_answer(
    maps: Sequence[Float32[np.ndarray, "h w"]], regions: Sequence[Bool[np.ndarray, "h w"]], answers: Sequence[str]
) -> dict[str, Any]:
    shares = [evidence_inside(a, region) for a, region in zip(maps, regions, strict=True)]
    areas = [float(region.mean()) for region in regions]
    figures = {}
    for name in ("any", *DIAGNOSIS_NAMES):
        rows = [
            (share, area)
            for share, area, answer in zip(shares, areas, answers, strict=True)
            if share is not None and name in ("any", answer)
        ]
        if rows:
            share, area = np.mean(rows, axis=0)
            more = float(np.mean([s > a for s, a in rows]))
            figures[name] = {
                "n": len(rows),
                "evidence_share": _rounded(share),
                "area_share": _rounded(area),
                "scans_with_more_than_the_area": _rounded(more),
            }
    return {"by_answer": figures}


def _rounded(value: Any) -> float:
    return round(float(value), 4)


if __name__ == "__main__":
    sys.stdout.write(as_json(main()))
