"""Darkroom: a workbench for training image-restoration models and trusting their numbers."""
