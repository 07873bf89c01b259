# SPDX-License-Identifier: Apache-2.0
"""Data sets of classification tasks: VTAB-1k and FGVC."""
