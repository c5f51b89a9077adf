"""A case that is to be exported: what was said of it, and the scan or the volume that it was said of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from serving.dicom_planes import Plane
from serving.dicom_volumes import DicomVoxels
from serving.errors import RequestError
from serving.labels import STREAM_NAMES
from serving.results import CaseReport
from serving.scans import Scan, decode
from serving.series import Series, read_study
from serving.study_report import StudyReport
from serving.volumes import Volume


@dataclass(frozen=True, eq=False)
class Case:
    """One case. Made by `of_scan` or `of_volume`.

    Attributes:
        report: What was said of it.
        scan: The scan; None for a study.
        data: The scan's file; None for a study.
        volume: The study's volume; None for a scan.
    """

    report: CaseReport | StudyReport
    scan: Scan | None = field(default=None, repr=False)
    data: bytes | None = field(default=None, repr=False)
    volume: Volume | None = field(default=None, repr=False)

    @classmethod
    def of_scan(cls, data: bytes, report: CaseReport) -> Case:
        """The case of a single scan.

        Args:
            data: The file's own bytes, as they were sent.
            report: What `PipelineClient.predict` said of it.

        Raises:
            ScanError: If it can not be decoded.
            RequestError: If the report is not about a scan of this size.
        """
        scan = decode(data, report.modality)
        if scan.size_hw != report.size_hw:
            raise RequestError(f"expected a scan of {report.size_hw} as in the report, got {scan.size_hw}")
        return cls(report, scan=scan, data=data)

    @classmethod
    def of_volume(cls, volume: Volume, report: StudyReport) -> Case:
        """The case of a CT study.

        Args:
            volume: As it was read. Its files must still be there.
            report: What `serving.study_reading` said of it, of all slices or of some.

        Raises:
            RequestError: If the report is not about a volume of this shape.
        """
        if volume.shape != report.shape:
            raise RequestError(f"expected a volume of {report.shape} as in the report, got {volume.shape}")
        return cls(report, volume=volume)

    @property
    def study(self) -> StudyReport | None:
        """The report, if it is of a study."""
        return self.report if isinstance(self.report, StudyReport) else None

    @property
    def single(self) -> CaseReport | None:
        """The report, if it is of a scan."""
        return self.report if isinstance(self.report, CaseReport) else None

    @property
    def ran(self) -> tuple[str, ...]:
        """The streams that ran, on any slice of a study."""
        return tuple(stream for stream in STREAM_NAMES if self.report.masks[stream] is not None)

    @cached_property
    def series(self) -> Series | None:
        """The series of a single DICOM scan, of one slice; None for a study and for other files."""
        if self.data is None or self.scan is None or self.scan.source_format != "dicom":
            return None
        return read_study(self.data).choose()

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The DICOM frames that the case was read from, in the order of `source_masks`; none if it is not DICOM."""
        if self.series is not None:
            return self.series.planes
        if self.volume is not None and isinstance(self.volume.source, DicomVoxels):
            return self.volume.source.planes
        return ()

    def picture(self, index: int = 0) -> UInt8[np.ndarray, "h w"]:
        """Grey of the scan, or of a slice of the study, for display.

        Raises:
            GeometryError: If there is no such slice.
            ScanError: If it can not be decoded.
        """
        if self.volume is not None:
            return self.volume.slice_scan(index).pixels
        assert self.scan is not None
        return self.scan.pixels

    def masks(self, index: int = 0) -> Mapping[str, UInt8[np.ndarray, "h w"]]:
        """Class ids by stream on the pixels of `picture`, of the streams that ran.

        Raises:
            GeometryError: If there is no such slice.
        """
        if self.study is not None:
            return {name: mask.slice(index) for name, mask in self.study.masks.items() if mask is not None}
        assert self.single is not None
        return {name: mask for name, mask in self.single.masks.items() if mask is not None}

    def source_masks(self, stream: str) -> UInt8[np.ndarray, "a b c"]:
        """Class ids of a stream that ran, on the voxel grid of the file.

        Returns:
            For a study as `Volume.to_source_grid`; for a scan one plane, (1, rows, columns).

        Raises:
            RequestError: If there is no such stream, or it did not run.
        """
        if stream not in self.ran:
            raise RequestError(f"expected a stream that ran ({', '.join(self.ran) or 'none did'}), got {stream!r}")
        mask = self.report.masks[stream]
        if isinstance(mask, np.ndarray):
            return mask[None]
        assert self.volume is not None
        assert mask is not None
        # Filled where it is to lie: put there from an array in axial order, a large study would be in memory twice.
        source = np.zeros(self.volume.source.shape, np.uint8)
        mask.fill(self.volume.layout.axial(source))
        return source
