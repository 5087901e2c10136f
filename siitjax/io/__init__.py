"""Trained models as files and folders.

In comes a name, a file or a folder; out comes a model with its case and metrics (`trained`). And the other way round:
`hub_folder` writes a model as a hub shows it, `model_card` its README.
"""
