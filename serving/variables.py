"""Environment variables that more than one program reads. Imports nothing, so that help stays quick."""

from __future__ import annotations

from typing import Final

TLS_CA_VARIABLE: Final = "LUNGSTREAMS_TLS_CA"
TLS_CERT_VARIABLE: Final = "LUNGSTREAMS_TLS_CERT"
TLS_KEY_VARIABLE: Final = "LUNGSTREAMS_TLS_KEY"
"""Files of `serving.tls.ClientTls`."""
