# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Trainers, what they train, and how a run is put together."""
