# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Predictions, metrics, confidence intervals and the contribution of each modality."""
