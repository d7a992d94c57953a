"""Print the JSON schema of config files: `python -m msn.config > configs/schema.json`.

The name of a method with keys of its own gives that of its files: `mae`, `schema_mae.json`.
"""

import json
import sys

from msn.config.load import KINDS, Config

if __name__ == "__main__":
    kind = KINDS[sys.argv[1]] if len(sys.argv) > 1 else Config
    print(json.dumps(kind.json_schema(), indent=2))
