"""`python -m stylefusion_hf.cli COMMAND ...`, which `accelerate launch -m` can start too."""

import sys

from stylefusion_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
