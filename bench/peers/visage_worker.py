"""visage on its light runtime: a path a line -> {"age": years or null} a line.

Arguments: runtime (onnx or torch) and precision (float or int8).
"""

import json
import sys
from typing import cast

import visage
from visage.inference.loading import Precision
from visage.inference.photos import Runtime

model = visage.load(
    runtime=cast(Runtime, sys.argv[1]),
    precision=cast(Precision, sys.argv[2]),
)
for line in sys.stdin:
    faces = model.predict(line.rstrip("\n")).faces
    print(json.dumps({"age": faces[0].value if faces else None}), flush=True)
