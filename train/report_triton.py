"""The section of `docs/results.md` on the answers of a running Triton, from `train.through_triton`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from train.markdown import number, table


def triton_markdown(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A section.

    Args:
        figures: By model, as `train.through_triton.compared` gives them.
    """
    rows, headlines = [], []
    for model, entry in figures.items():
        pictures = entry["as_pictures_by_source"]
        apart = entry.get("max_probability_difference", entry.get("differing_part_of_mask_pixels"))
        of = "of a probability" if "max_probability_difference" in entry else "of the masks' pixels"
        rows.append(
            [
                model,
                str(entry["n_scans"]),
                str(entry["as_files"]),
                "; ".join(f"{source}: {n}" for source, n in pictures.items()) or "none",
                f"{apart:.1e} {of}" if apart else f"none {of}",
                f"{len(entry['differing_figures'])} of {entry['n_figures']}",
                "yes" if entry["agrees"] else "**no**",
            ]
        )
        headlines += [[model, name.replace("/", ", "), number(value, 4)] for name, value in entry["headlines"].items()]
    agree = sum(entry["agrees"] for entry in figures.values())
    header = [
        "model",
        "scans",
        "as their own files",
        "as pictures",
        "largest difference",
        "figures that differ",
        "agrees",
    ]
    return (
        "## Through the running Triton\n\n"
        "The same scans, asked of the embedded Triton over gRPC (`lungstreams evaluate --through-triton`). A file that"
        " the ensemble reads as training did went as it is to `covid_pipeline` with open gates, by the project's"
        " client; 16-bit slices of Hounsfield units and slices equalised upstream went as prepared pictures to the"
        f" composing models. {agree} of {len(figures)} models agree with ONNX Runtime: every figure of"
        " `docs/results.json` to four places, and the answers themselves within the tolerances of an export.\n\n"
        + table(header, rows)
        + "\nSome of these figures, as Triton gives"
        " them:\n\n" + table(["model", "figure", "through Triton"], headlines)
    )
