# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Trainers, the choice of trainable parameters, and the assembly of a run from its flags."""
