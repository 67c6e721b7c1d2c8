"""DICOM Part 10: what a file says about itself, and whether it is whole."""
