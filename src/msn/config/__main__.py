"""Print the JSON schema of config files: `python -m msn.config > configs/schema.json`.

The name of a method with keys of its own gives that of its files: `mae`, `schema_mae.json`.
"""

import json
import sys

from msn.config.kinds import METHODS

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "msn"
    if name not in METHODS:
        print(f"error: {name}: not a method; known are {', '.join(METHODS)}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(METHODS[name].json_schema(), indent=2))
