"""Cases as files: JSON, CSV, pictures, NIfTI, DICOM SEG and SR, and a page for people.

::

    case = Case.of_scan(data, client.predict(data))
    write(case, ["json", "pdf"], Path("out"), "case-1")

No name, number or date of a patient gets into any of them but ``seg`` and ``sr``: DICOM objects that belong to the
patient's study carry its patient and study, or no archive would take them.
"""

from serving.errors import CanNotExport
from serving.exports.case import Case
from serving.exports.writing import KINDS, possible, write, write_possible

__all__ = ["KINDS", "CanNotExport", "Case", "possible", "write", "write_possible"]
