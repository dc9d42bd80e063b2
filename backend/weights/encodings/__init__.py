"""Encodings: the ways of keeping weights in 8 or 4 bits that are read here, one module each."""

from backend.weights.encodings import compressed_tensors, fp8, mxfp4
from backend.weights.encodings.encoding import Encoding

ENCODINGS: dict[str, Encoding] = {
    "fp8": fp8.ENCODING,
    "fbgemm_fp8": fp8.ENCODING,
    "mxfp8": fp8.ENCODING,
    "mxfp4": mxfp4.ENCODING,
    "compressed-tensors": compressed_tensors.ENCODING,
}
"""By what config.json calls them: `quant_method`."""
