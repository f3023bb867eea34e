"""YOLOv3: networks, Darknet weights, targets, loss, decoding, and the Lightning module around them."""
