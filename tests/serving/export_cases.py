"""Cases to export, made without a server: reports about drawn scans and written volumes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from serving.burden import Tally
from serving.exports import Case
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.lungs import lungs_of_grey
from serving.mask_stacks import MaskStack
from serving.measuring import measured
from serving.phantom import ct_slice
from serving.pipeline import MODEL_NAMES, THRESHOLDS
from serving.results import STATUS_NAMES, CaseReport, area_fraction
from serving.scans import decode
from serving.study_report import SliceReading, StudyReport
from serving.volumes import Volume

DIAGNOSIS = {"covid19": 0.7, "normal": 0.05, "viral_pneumonia": 0.15, "bacterial_pneumonia": 0.1}
FINDINGS = {"ground_glass": 0.9, "consolidation": 0.8, "pleural_effusion": 0.7}
MODELS = {model: "3" for model in MODEL_NAMES}

Masks = Mapping[str, np.ndarray]


def streams_of(class_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of all streams from class ids. The specialised ones see a little more, so that networks differ."""
    single = {name: (class_ids == i).astype(np.uint8) for i, name in enumerate(MANIFESTATION_NAMES, start=1)}
    single["ground_glass"] |= np.roll(single["ground_glass"], 1, axis=-1)
    return {"all": class_ids.astype(np.uint8), **single}


def ct_report(masks: Masks) -> CaseReport:
    return CaseReport(
        modality="ct",
        diagnosis=DIAGNOSIS,
        manifestations=FINDINGS,
        masks=masks,
        status=dict.fromkeys(STATUS_NAMES, "ran"),
        area_fraction={name: area_fraction(mask) for name, mask in masks.items()},
        thresholds=THRESHOLDS,
        size_hw=masks["all"].shape,
        models=MODELS,
        latency_ms=12.5,
    )


def xray_report(size_hw: tuple[int, int]) -> CaseReport:
    nothing = dict.fromkeys(STREAM_NAMES)
    return CaseReport(
        modality="xray",
        diagnosis=DIAGNOSIS,
        manifestations=dict.fromkeys(MANIFESTATION_NAMES),
        masks=nothing,
        status=dict.fromkeys(STATUS_NAMES, "not_applicable"),
        area_fraction=nothing,
        thresholds=THRESHOLDS,
        size_hw=size_hw,
        models=MODELS,
    )


def marks(shape: tuple[int, int, int]) -> np.ndarray:
    """Class ids without any symmetry: no permutation or flip of them is them. Slice 1 is empty."""
    ids = np.zeros(shape, np.uint8)
    ids[2, 4:7, 5:20] = 1
    ids[2:9, 4, 5] = 2
    ids[2, 4:30, 5] = 3
    ids[-1, -9:-2, 3:8] = 1
    ids[2, 4, 5] = 2
    return ids


def study_report(volume: Volume, class_ids: np.ndarray, *, read: int | None = None) -> StudyReport:
    """A report in which slice after slice is likelier to show COVID-19; the first `read` slices were read."""
    masks, tally, slices = streams_of(class_ids), Tally(), []
    stacks = {name: MaskStack(volume.shape) for name in masks}
    for index in range(volume.shape[0] if read is None else read):
        here = {name: mask[index] for name, mask in masks.items()}
        for name, mask in here.items():
            stacks[name].put(index, mask)
        lungs = lungs_of_grey(volume.slice_scan(index).pixels)
        tally.add(lungs, {name: here[name] for name in MANIFESTATION_NAMES}, volume.voxel_ml(index))
        p = 0.05 + 0.8 * index / volume.shape[0]
        slices.append(
            SliceReading(
                index=index,
                diagnosis={**DIAGNOSIS, "covid19": p, "normal": 1 - p},
                manifestations={name: value * p for name, value in FINDINGS.items()},
                status=dict.fromkeys(STATUS_NAMES, "ran"),
                area_fraction={name: area_fraction(mask) for name, mask in here.items()},
                lung_px=int(np.count_nonzero(lungs)),
            )
        )
    return StudyReport(
        shape=volume.shape,
        spacing_mm=volume.spacing_mm,
        problems=volume.problems,
        slices=tuple(slices),
        masks=stacks,
        burden=tally.burden(),
        thresholds=THRESHOLDS,
        models=MODELS,
        latency_ms=1234.5,
    )


def study_case(volume: Volume, *, read: int | None = None) -> Case:
    return Case.of_volume(volume, study_report(volume, marks(volume.shape), read=read))


def classes_of(hu: np.ndarray) -> np.ndarray:
    """Class ids from the values themselves, so that a mask can be held against whatever grid the values are on."""
    return np.select([hu > 1000, hu > 250, hu > 150, hu > 50], [2, 3, 2, 1], 0).astype(np.uint8)


def hu_case(volume: Volume) -> Case:
    """A study whose masks are `classes_of` its values."""
    return Case.of_volume(volume, study_report(volume, classes_of(np.stack(list(volume.slices_hu())))))


def drawn_case(data: bytes, seed: int = 3, size_px: int = 512) -> Case:
    """The case of `ct_slice` of that seed, however it is packed, with what was drawn as masks."""
    report = ct_report(streams_of(ct_slice(seed, size_px).mask))
    return Case.of_scan(data, measured(report, decode(data, "ct")))
