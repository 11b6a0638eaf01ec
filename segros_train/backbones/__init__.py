"""Families of backbones, each in a sub-package named like its `BackboneCard.family`."""
