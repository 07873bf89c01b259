# SPDX-License-Identifier: Apache-2.0
from .miniature import build_miniature, compose_scene, find_damage

__all__ = ['build_miniature', 'compose_scene', 'find_damage']
