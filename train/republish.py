"""A published version once more, with activation maps: for weights whose training run is gone.

Version 3 of recognition was published without. ``python -m train.republish`` made version 4 of it: the same weights,
the same answers to the bit, one more output. Whatever is exported from a run gets its maps by the same code.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Final

import onnx

from serving.errors import ExportError
from serving.pipeline import RECOGNITION
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, versions
from serving.trial_scans import drawn_scans
from train.digest import sha256_of
from train.export import publish_network
from train.provenance import FILE_NAME, Provenance, code_version, today
from train.ungating import ungated

KEPT: Final = 1


def main(repository: Path = DEFAULT_REPOSITORY) -> Path:
    """Publish recognition's newest version again, with activation maps, in its place.

    Args:
        repository: The model repository.

    Returns:
        The new version folder. Its provenance is the old one's, and says in ``parity`` what was added.

    Raises:
        ExportError: If there is no version, or it has maps already. Nothing is published.
        ParityError: If the maps change an answer. Nothing is published.
    """
    present = versions(repository / RECOGNITION.model)
    if not present:
        raise ExportError(f"expected a published {RECOGNITION.model} in {repository}, got none")
    folder = repository / RECOGNITION.model / str(present[-1])
    network = ungated(onnx.load(folder / ONNX_NAME))
    if len(network.graph.output) != 1:
        raise ExportError(f"expected a version without activation maps, got {present[-1]}, which has them")
    provenance = Provenance.from_json((folder / FILE_NAME).read_text(encoding="utf-8"))
    added = {
        "to_version": present[-1],
        "its_sha256": sha256_of(folder / ONNX_NAME),
        "created": today(),
        "code_version": code_version(),
    }
    return publish_network(
        network,
        RECOGNITION,
        repository,
        provenance=dataclasses.replace(provenance, parity={**provenance.parity, "activation_added": added}),
        golden=drawn_scans(RECOGNITION),
        keep=KEPT,
    )


if __name__ == "__main__":
    sys.stdout.write(f"published {main()}\n")
