# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Writing, verification and upload of repositories for the Hub."""
