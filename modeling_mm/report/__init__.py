# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Figures, and HTML pages of evaluations and searches."""
