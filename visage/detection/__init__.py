"""Photos to faces: MTCNN, five landmarks, alignment, image files."""
