"""How long `import msn` takes beyond `import torch`, each in fresh processes, in turns.

python benchmarks/imports.py
"""

import statistics
import subprocess
import sys
import time

IMPORTS = {
    "torch": "import torch",
    "torch and msn": "import torch, msn",
    "torch and msn.load_encoder": "import torch, msn; msn.load_encoder",
}
ROUNDS = 5


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    rounds = [[seconds(code) for code in IMPORTS.values()] for _ in range(1 + ROUNDS)][1:]
    for position, name in enumerate(IMPORTS):
        own = statistics.median(row[position] for row in rounds)
        beyond = statistics.median(row[position] - row[0] for row in rounds)
        print(f"{name:28}{own:8.2f} s{beyond:8.2f} s beyond torch")


if __name__ == "__main__":
    main()
