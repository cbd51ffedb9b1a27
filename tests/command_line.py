"""How the tests of the command line read a refusal."""

import pytest

from stylefusion_hf.cli import main


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a refused command says: exit status 2, one line, no traceback."""
    try:
        status = main(argv)
    except SystemExit as stop:  # argparse
        status = stop.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert status == 2
    lines = [line for line in captured.err.splitlines() if line.startswith("stylefusion: error: ")]
    assert len(lines) == 1, captured.err
    assert captured.err.rstrip().endswith(lines[0]), captured.err
    assert "Traceback" not in captured.err
    return lines[0]
