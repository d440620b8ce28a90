"""JSON objects in files that a user may have damaged."""

import json
from pathlib import Path
from typing import Any

from model.errors import UserError


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Return the object in a JSON file; raises `UserError`, which ends with `advice`, for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {advice}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {advice}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid JSON (it is nested too deeply); {advice}") from None
    except ValueError:  # Python refuses to count digits for minutes
        raise UserError(f"{path} is not valid JSON (a number has thousands of digits); {advice}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(values).__name__}; {advice}")
    return values
