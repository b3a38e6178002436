"""Start the page: `python app.py`, or `python app.py --help` for the options."""

import sys

from ui import launch

if __name__ == "__main__":
    sys.exit(launch.main())
