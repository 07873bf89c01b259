# SPDX-License-Identifier: Apache-2.0
"""Data sets of classification tasks, VTAB-1k and FGVC, and small ones that are made on the spot."""
from .miniature import build_miniature, compose_scene, find_damage

__all__ = ['build_miniature', 'compose_scene', 'find_damage']
