"""What findings and diagnoses are called in DICOM: SNOMED CT and DCM codes, and our own where there is none.

Codes of DICOM's own tables are in PS3.16. Of SNOMED CT's, DICOM's tables lack 95436008, 840539006, 75570004 and
53084003; they are SNOMED's own for just these.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pydicom.sr.coding import Code

PRIVATE: Final = "99LUNGSTREAMS"
"""The scheme of our own codes: `PROBABILITY`, `THRESHOLD`, `REACHED`, `LUNG_PERCENT`, `STATUS` and its values."""

ABNORMAL: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")
"""CID 7150."""
LUNG: Final = Code("39607008", "SCT", "Lung")
"""CID 4."""
PLEURA: Final = Code("3120008", "SCT", "Pleura")
"""CID 7151."""
LEFT: Final = Code("7771000", "SCT", "Left")
RIGHT: Final = Code("24028007", "SCT", "Right")
AI: Final = Code("123110", "DCM", "Artificial Intelligence")
"""CID 7162."""

MANIFESTATION_CODES: Final[Mapping[str, Code]] = MappingProxyType(
    {
        # CID 6102, 6104.
        "ground_glass": Code("112120", "DCM", "Ground glass opacity"),
        "consolidation": Code("95436008", "SCT", "Lung consolidation"),
        # CID 645.
        "pleural_effusion": Code("60046008", "SCT", "Pleural effusion"),
    }
)
REGION_CODES: Final[Mapping[str, Code]] = MappingProxyType(
    {"ground_glass": LUNG, "consolidation": LUNG, "pleural_effusion": PLEURA}
)
DIAGNOSIS_CODES: Final[Mapping[str, Code]] = MappingProxyType(
    {
        "covid19": Code("840539006", "SCT", "COVID-19"),
        "normal": Code("17621005", "SCT", "Normal"),
        "viral_pneumonia": Code("75570004", "SCT", "Viral pneumonia"),
        "bacterial_pneumonia": Code("53084003", "SCT", "Bacterial pneumonia"),
    }
)

PROBABILITY: Final = Code("PROBABILITY", PRIVATE, "Probability by a neural network")
THRESHOLD: Final = Code("THRESHOLD", PRIVATE, "Threshold of the probability in this request")
REACHED: Final = Code("REACHED", PRIVATE, "Probability reaches the threshold")
LUNG_PERCENT: Final = Code("LUNG_PERCENT", PRIVATE, "Volume in relation to that of the lung of that side")
STATUS: Final = Code("STATUS", PRIVATE, "Whether the network ran")
STATUS_VALUES: Final[Mapping[str, Code]] = MappingProxyType(
    {
        "ran": Code("RAN", PRIVATE, "Ran"),
        "not_run": Code("NOT_RUN", PRIVATE, "Not run: a gate was closed"),
        "not_applicable": Code("NOT_APPLICABLE", PRIVATE, "Not applicable: for CT slices only"),
    }
)
YES: Final = Code("373066001", "SCT", "Yes")
NO: Final = Code("373067005", "SCT", "No")
VOLUME: Final = Code("118565006", "SCT", "Volume")
AREA: Final = Code("42798000", "SCT", "Area")
UNITS: Final[Mapping[str, Code]] = MappingProxyType(
    {
        "1": Code("1", "UCUM", "no units"),
        "%": Code("%", "UCUM", "percent"),
        "ml": Code("ml", "UCUM", "milliliter"),
        "mm2": Code("mm2", "UCUM", "square millimeter"),
    }
)
PROCEDURES: Final[Mapping[str, Code]] = MappingProxyType(
    {
        "ct": Code("169069000", "SCT", "CT of chest"),
        "xray": Code("399208008", "SCT", "Plain chest X-ray"),
    }
)
