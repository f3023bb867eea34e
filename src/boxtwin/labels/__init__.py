"""Labels of variations and of new images, and files of labels in the formats of other tools."""
