# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Embeddings of images on disk, and the nearest of them."""
