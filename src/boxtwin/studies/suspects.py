"""Labels that the detections of several runs contradict."""

SUSPECTS_FOLDER = "suspects"  # beside the report of a study
SUGGESTED_FILE = "all_suggestions_applied.json"
