"""The one `torch.library` fragment that prunekit's ops are defined in."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("prunekit", "FRAGMENT")
