"""Write the golden files anew: ``python -m tests.golden.write``. Look at the difference before committing it."""

from __future__ import annotations

from pathlib import Path

from serving.phantom import chest_xray, ct_slice, png_bytes
from serving.preprocessing import preprocess
from serving.scans import decode

FOLDER = Path(__file__).parent


def main() -> None:
    # One that grows along both axes, one that shrinks along one and grows along the other.
    inputs = {"ct": ct_slice(4, 256).pixels[40:200, 20:240], "xray": chest_xray(4, 640)[100:340]}
    for modality, pixels in inputs.items():
        (FOLDER / f"{modality}_input.png").write_bytes(png_bytes(pixels))
        scan = decode((FOLDER / f"{modality}_input.png").read_bytes(), modality)
        (FOLDER / f"{modality}_preprocessed.png").write_bytes(png_bytes(preprocess(scan)[..., 0]))


if __name__ == "__main__":
    main()
