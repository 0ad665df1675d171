"""The rows of the manifest (one a photo) and of the face table (one a face), as their parquet files
hold them."""

from __future__ import annotations

import pyarrow as pa

TEXT = pa.string()
REAL = pa.float64()
WHO = [("person", TEXT), ("sex", TEXT), ("ethnicity", TEXT), ("split", TEXT)]
MANIFEST_SCHEMA = pa.schema(
    [
        ("photo_id", TEXT),
        ("sha256", TEXT),
        ("num_bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("unreadable", TEXT),
        ("label", REAL),
        ("sigma", REAL),
        ("half_width", REAL),  # of a label that is an interval
        *WHO,
    ]
)
FACE_SCHEMA = pa.schema(
    [
        ("photo_id", TEXT),
        ("sha256", TEXT),
        ("jpeg", pa.binary()),
        ("box", pa.list_(pa.float32(), 4)),
        ("landmarks", pa.list_(pa.float32(), 10)),
        ("probability", pa.float32()),
        ("num_faces", pa.int32()),
        ("found", TEXT),
        ("label", REAL),
        ("sigma", REAL),
        ("half_width", REAL),
        *WHO,
    ]
)
# FACE_SCHEMA's metadata: JSON with `alignment` and `detector`, as in a model's config
METADATA_KEY = b"visage"
