"""Export: a run in, a bundle out that has proved itself. Everything here needs the extra `export`."""
