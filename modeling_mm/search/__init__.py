# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""An index of image embeddings on disk, and nearest-neighbour search in it."""
