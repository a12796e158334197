# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The verbs of `modeling-mm`, one per file."""
