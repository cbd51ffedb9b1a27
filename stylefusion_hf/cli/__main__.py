"""`python -m stylefusion_hf.cli`."""

import sys

from stylefusion_hf.cli import main

sys.exit(main())
