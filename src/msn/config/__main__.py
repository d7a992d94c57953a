"""Print the JSON schema of config files: `python -m msn.config > configs/schema.json`."""

import json

from msn.config.load import Config

if __name__ == "__main__":
    print(json.dumps(Config.json_schema(), indent=2))
