# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Export to ONNX and `torch.export` graphs, and their runtime."""
