"""visage on its light runtime: a path a line -> {"age": years or null} a line.

Arguments: runtime (onnx or torch) and precision (float or int8).
"""

import json
import sys

import visage

model = visage.load(runtime=sys.argv[1], precision=sys.argv[2])
for line in sys.stdin:
    faces = model.predict(line.rstrip("\n")).faces
    print(json.dumps({"age": faces[0].value if faces else None}), flush=True)
