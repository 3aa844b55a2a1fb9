"""python -m controller; the work is `controller.service`. When it is asked to end, it waits for what is being sent."""

import argparse
import sys

from backplane.entry_point import run
from controller.service import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m controller", description="Sends webhooks, removes what is old.")
    parser.parse_args()
    return run("controller", serve)


if __name__ == "__main__":
    sys.exit(main())
