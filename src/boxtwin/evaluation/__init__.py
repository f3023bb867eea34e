"""Judging detections: COCO figures, counts, pictures."""
