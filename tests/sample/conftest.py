import sys
from pathlib import Path

# importlib mode gives test modules no package: what they share is found beside them.
sys.path.insert(0, str(Path(__file__).parent))
