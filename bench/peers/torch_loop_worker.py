"""The same model in a plain loop over facenet-pytorch's MTCNN and torch: a path a line -> {"age":
years or null} a line. This is what one writes without visage's runtime."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from visage.detection.align import crop, similarity, template
from visage.inference.torch_engine import Inference
from visage.weights import load_model

network, config = load_model(Path(sys.argv[1]))
how = config.alignment
target_52 = template(how.template, how.crop_px, how.face_scale)
inference = Inference(network.eval(), config, torch.float32)
detector = MTCNN(keep_all=True, min_face_size=config.detector.min_face_px)

for line in sys.stdin:
    with Image.open(line.rstrip("\n")) as image:
        photo = image.convert("RGB")
    _, _, points = detector.detect(photo, landmarks=True)

    age = None
    if points is not None:
        matrix_23 = similarity(points[0], target_52)
        crop_HWC = crop(np.asarray(photo), matrix_23, how.crop_px)
        with torch.inference_mode():
            _, value_B, _ = inference(torch.from_numpy(crop_HWC).permute(2, 0, 1)[None])
        age = float(value_B[0])
    print(json.dumps({"age": age}), flush=True)
