# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The code that travels to the Hub with a checkpoint: configuration, towers, fusion, heads, processor.

The folder is flat; its files end in `_mm` and import only each other.
"""
