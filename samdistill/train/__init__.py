"""Training: few labels and a teacher in, a run folder out. Everything below needs the extra `train`."""
