"""Imported first by every benchmark: `python benchmarks/X.py` then finds the packages of this checkout, installed or not."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
