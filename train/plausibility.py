"""Fit the detectors of `serving.plausibility`: ``python -m train.plausibility --packages FOLDER``.

Costs ten minutes on two cores; the folder is that of `train.not_chest`. Expect fewer than 1 % of the real test scans
flagged, and 95 % of the pictures of most kinds that were not fitted on.

A detector tells the chest scans of one modality from everything else. Its threshold is set so that of sources that it
was not fitted on few are flagged, for a new hospital is what will come. Test scans are looked at once, at the end.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from jaxtyping import Bool, Float32, Int64
from rich.console import Console
from rich.progress import track
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from serving.labels import MODALITIES, Modality
from serving.plausibility import CLASSES, COEFFICIENTS, LIMIT, ChestDetector
from train import data
from train.plausibility_data import MADE, TURNS, Table, others, phantoms, scans, volume_slices

REPORT: Final = Path(__file__).parents[1] / "docs" / "plausibility.json"
_TURNED_CT: Final = ("clockwise", "anticlockwise", "inverted")
"""A slice upside down is too much like one that is not: it is left out of the fit."""


@dataclass(frozen=True)
class PlausibilityConfig:
    """What to fit.

    Attributes:
        networks: Fitted from different random numbers; their logits are averaged.
        units: Of the hidden layer of each.
        decay: scikit-learn's alpha.
        epochs: Over the data.
        new_sources_flagged: Share of the scans of sources left out that the threshold flags.
        drawn: Pictures of each drawn kind.
        phantoms: Chest phantoms of each modality; half of them are fitted on.
        seed: Of everything.
    """

    networks: int = 3
    units: int = 16
    decay: float = 1.0
    epochs: int = 40
    new_sources_flagged: float = 0.01
    drawn: int = 40
    phantoms: int = 80
    seed: int = 0


def fit(table: Table, config: PlausibilityConfig) -> ChestDetector:
    """A detector whose border is where a chest scan is as likely as none, each counted as often.

    Args:
        table: Rows whose groups are chest scans of one modality (``chest``), slices without lung (``no_lung``), and the
            rest.
        config: The recipe.
    """
    scaler = StandardScaler().fit(table.values)
    classes = np.array([CLASSES.index(one.group) if one.group in CLASSES else 1 for one in table.rows])
    repeats = max(1, round(int((classes == 0).sum()) / int((classes > 0).sum())))
    order = np.concatenate([np.flatnonzero(classes == 0), *[np.flatnonzero(classes > 0)] * repeats])
    standard = np.clip(scaler.transform(table.values), -LIMIT, LIMIT)[order]
    networks = [_network(standard, classes[order], config, config.seed + i) for i in range(config.networks)]
    # Side by side they are one network, whose logits are the mean of theirs.
    hidden, hidden_bias = (np.concatenate([each[i] for each in networks], axis=-1) for i in (0, 1))
    out = np.concatenate([each[2] for each in networks]) / len(networks)
    out_bias = np.mean([each[3] for each in networks], axis=0)
    arrays = (scaler.mean_, scaler.scale_, hidden, hidden_bias, out, out_bias)
    return ChestDetector(*(array.astype(np.float32) for array in arrays))


def _network(
    standard: Float32[np.ndarray, "n features"], classes: Int64[np.ndarray, " n"], config: PlausibilityConfig, seed: int
) -> tuple[np.ndarray, ...]:
    network = MLPClassifier(
        (config.units,),
        alpha=config.decay,
        max_iter=config.epochs,
        batch_size=min(256, len(standard)),
        learning_rate_init=2e-3,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # The number of epochs is part of the recipe.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(standard, classes)
    (hidden, out), (hidden_bias, out_bias) = network.coefs_, network.intercepts_
    if out.shape[1] == 1:
        # Of two classes scikit-learn keeps the logit of the second against the first.
        out, out_bias = np.hstack([0 * out, out]), np.append(0, out_bias)
    return hidden, hidden_bias, out, out_bias


def moved(detector: ChestDetector, threshold: float) -> ChestDetector:
    """The same detector with its border at a margin of before."""
    return replace(detector, out_bias=detector.out_bias - np.float32(threshold) * np.eye(len(detector.out_bias))[0])


def fitted(everything: Table, modality: Modality) -> Table:
    """What the detector of a modality is fitted on: rows outside of the test split."""
    rows = everything.where(split=("train", "val"))
    other = next(name for name in MODALITIES if name != modality)
    turned = rows.where(group="turned", modality=modality, change=TURNS if modality == "xray" else _TURNED_CT)
    no_lung = rows.where(group="no_lung")
    # A quarter: there are several times as many as of all other kinds together.
    others_chest = Table(rows.where(group="chest", modality=other).rows[::4])
    return (
        rows.where(group="chest", modality=modality)
        + rows.where(group="not_chest")
        + turned
        + others_chest.grouped("not_chest")
        # An X-ray shows lungs or is of something else.
        + (no_lung if modality == "ct" else no_lung.grouped("not_chest"))
    )


def new_sources(table: Table, config: PlausibilityConfig) -> dict[str, Float32[np.ndarray, " n"]]:
    """Margins of each source's scans by a detector that was fitted without them."""
    margins = {}
    chest = table.where(group="chest")
    for source in track([kind for kind in chest.kinds() if not kind.startswith("drawn")], "sources left out"):
        margins[source] = fit(table.without(source), config).margin(chest.where(kind=source).values)
    return margins


def share(flagged: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """How many are flagged, with Wilson's 95 % interval."""
    n, z = len(flagged), 1.959964
    p = float(flagged.mean())
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return {
        "flagged": int(flagged.sum()), "of": n, "share": round(p, 4),
        "interval": [round(max(0.0, float(low)), 4), round(float(high), 4)],
    }  # fmt: skip


def new_kinds(
    everything: Table,
    tables: Mapping[Modality, Table],
    thresholds: Mapping[Modality, float],
    config: PlausibilityConfig,
) -> dict[str, Any]:
    """How many of each kind of what is no chest scan are flagged by detectors that were fitted without that kind."""
    measured = {}
    rows = everything.where(group=("not_chest", "no_lung"))
    for kind in track(rows.kinds(), "kinds left out"):
        table = rows.where(kind=kind)
        margins = {
            modality: fit(tables[modality].without(kind), config).margin(table.values) - thresholds[modality]
            for modality in MODALITIES
        }
        measured[kind] = {
            "auto": share(_as_read(table, margins) < 0),
            **{f"read as {modality}": round(float((margins[modality] < 0).mean()), 4) for modality in MODALITIES},
        }
    return measured


def in_short(kinds: Mapping[str, Any]) -> dict[str, Any]:
    """How many kinds are flagged nearly always, without those made of chest scans to fit on: nobody sends them."""
    shares = [kind["auto"]["share"] for name, kind in kinds.items() if not name.startswith(MADE)]
    return {
        "kinds": len(shares),
        "with_at_least_95_percent_flagged": sum(one >= 0.95 for one in shares),
        "mean_share_flagged": round(float(np.mean(shares)), 4),
    }


def _as_read(table: Table, margins: Mapping[Modality, Float32[np.ndarray, " n"]]) -> Float32[np.ndarray, " n"]:
    return np.array([margins[one.modality][i] for i, one in enumerate(table.rows)], np.float32)


def flagged(table: Table, detectors: Mapping[Modality, ChestDetector]) -> Bool[np.ndarray, " n"]:
    """Which rows are doubted, read as what their `modality` says."""
    return _as_read(table, {modality: detector.margin(table.values) for modality, detector in detectors.items()}) < 0


def measured_on_test(everything: Table, detectors: Mapping[Modality, ChestDetector]) -> dict[str, Any]:
    """Shares flagged of the test split: real scans by source, phantoms, slices without lung, turned, wrong modality."""
    test = everything.where(split="test")
    chest = test.where(group="chest")
    drawn = Table(tuple(row for row in chest.rows if row.kind.startswith("drawn")))
    volume = chest.where(kind="a volume")
    real = Table(tuple(row for row in chest.rows if not row.kind.startswith("drawn") and row.kind != "a volume"))
    without_lung = test.where(group="no_lung")
    as_is = real.where(change=("", "soft window"))

    def shares(table: Table) -> dict[str, Any]:
        return share(flagged(table, detectors))

    def misread(table: Table, modality: Modality) -> dict[str, Any]:
        return shares(table.read_as(modality))

    return {
        "false_alarms": shares(as_is),
        "false_alarms_by_source": {source: shares(as_is.where(kind=source)) for source in as_is.kinds()},
        "false_alarms_of_changed_copies": shares(real.where(change="changed")),
        "false_alarms_of_phantoms": shares(drawn),
        "false_alarms_of_a_volume": shares(volume),
        "slices_without_lung": {kind: shares(without_lung.where(kind=kind)) for kind in without_lung.kinds()},
        "read_as_the_other_modality": {
            "xray as ct": misread(as_is.where(modality="xray"), "ct"),
            "ct as xray": misread(as_is.where(modality="ct"), "xray"),
        },
        "turned": {
            f"{modality}, {turn}": shares(test.where(group="turned", modality=modality, change=turn))
            for modality in MODALITIES
            for turn in TURNS
        },
    }


def main(
    root: Annotated[Path | None, typer.Option(help="Folder of the real scans.")] = None,
    packages: Annotated[Path | None, typer.Option(help="Unpacked packages, see train.not_chest.")] = None,
    output: Annotated[Path, typer.Option(help="Where to write the coefficients.")] = COEFFICIENTS,
    report: Annotated[Path, typer.Option(help="Where to write the figures.")] = REPORT,
) -> None:
    """Fit, measure on groups, sources and kinds kept apart, publish the coefficients with their figures."""
    config = PlausibilityConfig()
    folder = data.data_root(root)
    everything = (
        scans(folder, config.seed)
        + volume_slices(folder)
        + phantoms(config.phantoms)
        + others(folder, packages, config.drawn, config.seed)
    )
    tables = {modality: fitted(everything, modality) for modality in MODALITIES}
    left_out = {modality: new_sources(table, config) for modality, table in tables.items()}
    thresholds = {
        modality: float(np.quantile(np.concatenate(list(margins.values())), config.new_sources_flagged))
        for modality, margins in left_out.items()
    }
    detectors = {modality: moved(fit(table, config), thresholds[modality]) for modality, table in tables.items()}
    kinds = new_kinds(everything, tables, thresholds, config)
    listed = {example.path: example for example in [*data.recognition(folder), *data.segmentation(folder)]}
    provenance = {
        "config": asdict(config),
        "data_sha256": data.fingerprint(listed.values(), folder),
        "fitted_on": {
            modality: {"chest": len(table.where(group="chest")), "all": len(table)}
            for modality, table in tables.items()
        },
        **measured_on_test(everything, detectors),
        "false_alarms_of_sources_left_out": {
            source: share(margin < thresholds[modality])
            for modality, margins in left_out.items()
            for source, margin in margins.items()
        },
        "kinds_left_out": kinds,
        "kinds_left_out_in_short": in_short(kinds),
        "licence_note": "fitted on data some of which is non-commercial; see docs/model_card.md",
    }
    publish(detectors, provenance, output)
    report.write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    Console().print_json(data=provenance)


def publish(detectors: Mapping[Modality, ChestDetector], provenance: dict[str, Any], output: Path) -> None:
    """Write coefficients and figures as `serving.plausibility` reads them."""
    arrays = {
        f"{modality}_{name}": value
        for modality, detector in detectors.items()
        for name, value in vars(detector).items()
    }
    np.savez_compressed(output, provenance=json.dumps(provenance), **arrays)


if __name__ == "__main__":
    typer.run(main)
