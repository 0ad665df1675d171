"""Face tables to batches: schemas, streams, preprocessing, augmentation."""
