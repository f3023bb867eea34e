"""Judging detections: COCO metrics, counts, pictures."""
